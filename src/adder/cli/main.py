"""The `adder` command: its list of commands, and what becomes of their errors.

Exit codes: 0 done; 1 a failure; 2 a request that cannot be served; 130 interrupted; 141 the reader
of the output went away. An error is one line on stderr.
"""

import importlib.metadata
import io
import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated

from adder.errors import AdderError, UsageError

if TYPE_CHECKING:
    import typer

FAILURE = 1
INTERRUPTED = 130
OUTPUT_CLOSED = 141

EXTRA_OF_MODULE = {
    "typer": "train",
    "rich": "train",
    "tokenizers": "train",
    "tensorboardX": "train",
    "matplotlib": "plot",
}


@cache
def app() -> "typer.Typer":
    """Build the command line.

    It is a function because typer is an optional dependency: without it, `main` can still say so.
    """
    import typer

    from adder.cli.bench import commands as bench
    from adder.cli.classify import classify
    from adder.cli.compare import compare
    from adder.cli.convert import convert
    from adder.cli.evaluate import evaluate
    from adder.cli.explain import explain
    from adder.cli.generate import generate
    from adder.cli.info import info
    from adder.cli.train import train

    commands = typer.Typer(
        name="adder",
        help="State space sequence models: train one on text, sounds or images, and use it.",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def print_version(asked: bool) -> None:
        if asked:
            print(f"adder {importlib.metadata.version('adder-ssm')}")
            raise typer.Exit

    @commands.callback()
    def options(
        version: Annotated[
            bool,
            typer.Option(
                "--version",
                help="Print the version and exit.",
                callback=print_version,
                is_eager=True,
            ),
        ] = False,
    ) -> None:
        del version

    commands.command("train")(train)
    commands.command("generate")(generate)
    commands.command("evaluate")(evaluate)
    commands.command("classify")(classify)
    commands.command("compare")(compare)
    commands.command("explain")(explain)
    commands.command("convert")(convert)
    commands.command("info")(info)
    commands.add_typer(bench(), name="bench")
    return commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: what follows `adder` on the command line; `None` means this process's own.
    """
    # GNU OpenMP reads this when torch is imported. Its threads spin for milliseconds after each operator; on a
    # busy machine a training step then takes ten times as long. A short spin is as fast on a quiet one.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character gets a question mark, not a crash.
        sys.stdout.reconfigure(errors="replace")
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        if sys.stdout is not None:  # it is None where the shell closed it: adder ... >&-
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return OUTPUT_CLOSED
    except KeyboardInterrupt:
        print("adder: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        message, code = _explain(error)
        print("adder: " + " ".join(message.split()), file=sys.stderr)
    return code


def _run(arguments: list[str]) -> int:
    """Run one command. Errors pass through: typer's own handling of them is not used."""
    import typer

    command = typer.main.get_command(app())
    try:
        with command.make_context("adder", arguments or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as finished:
        return finished.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    return 0


def _explain(error: Exception) -> tuple[str, int]:
    """What to tell the user, and the exit code."""
    if isinstance(error, AdderError):
        return str(error), error.exit_code
    # The errors of typer's parser have no public base class, but they all have this method.
    if hasattr(error, "format_message"):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "adder"
        return f"{error.format_message()} (see {command} --help)", UsageError.exit_code
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRA_OF_MODULE.get((error.name or "").partition(".")[0])
        if extra is not None:
            return f'{error.name} is missing: run pip install "adder-ssm[{extra}]"', FAILURE
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename is not None else ""
        return f"{error.strerror or error}{where}", FAILURE
    return (
        f"unexpected {type(error).__name__}: {error} "
        "(please report it; python -X dev -m adder ... shows where it came from)",
        FAILURE,
    )


def _discard_output() -> None:
    """Point stdout at nothing: Python flushes it once more as it exits, which must not fail."""
    if sys.__stdout__ is not None and sys.stdout is sys.__stdout__:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.__stdout__.fileno())
        os.close(nothing)
