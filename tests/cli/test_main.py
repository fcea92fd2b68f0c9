"""The frame of the command line: exit codes, one line for each error, nothing needless imported."""

import os
import re
import subprocess
import sys

import pytest

from adder.cli import main as frame
from adder.cli.main import main
from adder.errors import AdderError, DamagedFile, UsageError

COMMANDS = [
    "train",
    "generate",
    "evaluate",
    "classify",
    "compare",
    "explain",
    "convert",
    "info",
    "bench",
]


def run_raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code where a command raises `error`."""

    def fail(_: list[str]) -> int:
        raise error

    monkeypatch.setattr(frame, "_run", fail)
    return main([])


def the_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, where stdout has nothing."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("adder: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.removeprefix("adder: ").rstrip("\n")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    listed = re.findall(r"^  (\w+)  ", capsys.readouterr().out, flags=re.MULTILINE)
    assert listed == COMMANDS


@pytest.mark.parametrize("command", [*COMMANDS[:-1], "bench cpu", "bench gpu"])
def test_every_command_has_help_with_json_in_80_columns(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), "--help"]) == 0
    help_text = capsys.readouterr().out
    assert "--json" in help_text
    assert max(len(line) for line in help_text.splitlines()) <= 80


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    import adder

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"adder {adder.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sing"], ["sing", "adder --help"]),
        (["generate"], ["RUN", "adder generate --help"]),
        (["generate", "run", "--loudness", "3"], ["--loudness", "adder generate --help"]),
        (["generate", "run", "hello", "--max-tokens", "some"], ["--max-tokens"]),
        (["generate", "run", "hello", "--max-tokens", "-1"], ["--max-tokens"]),
        (["info", "more"], ["more"]),
        (["bench"], ["Missing command", "adder bench --help"]),
        (["bench", "tpu"], ["No such command 'tpu'", "adder bench --help"]),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    line = the_line(capsys)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (AdderError("it failed"), 1, "it failed"),
        (UsageError("not like this"), 2, "not like this"),
        (DamagedFile("a.json: cut"), 1, "a.json: cut"),
        (UsageError("two\n  lines"), 2, "two lines"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (PermissionError(13, "Permission denied", "/x/y"), 1, "Permission denied: /x/y"),
        (OSError("odd"), 1, "odd"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_raising(error, monkeypatch) == code
    assert the_line(capsys) == line


def test_an_unexpected_error_is_one_line_that_asks_for_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_raising(RuntimeError("odd"), monkeypatch) == 1
    line = the_line(capsys)
    assert "unexpected RuntimeError: odd" in line
    assert "report" in line


def test_a_closed_pipe_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_raising(BrokenPipeError(32, "Broken pipe"), monkeypatch) == 141
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("typer", "train"),
        ("rich.progress", "train"),
        ("tokenizers", "train"),
        ("matplotlib", "plot"),
    ],
)
def test_a_missing_optional_dependency_names_the_extra(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_raising(ModuleNotFoundError("gone", name=module), monkeypatch) == 1
    assert f'pip install "adder-ssm[{extra}]"' in the_line(capsys)


def test_without_typer_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    assert main(["info"]) == 1
    assert 'typer is missing: run pip install "adder-ssm[train]"' in the_line(capsys)


def test_python_m_adder_works_and_a_narrow_encoding_is_no_error() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "adder", "sing"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert result.returncode == 2
    assert result.stdout == b""
    assert result.stderr.startswith(b"adder: No such command 'sing'.")
