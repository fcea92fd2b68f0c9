"""`adder explain`: what a model remembers of a text, and what it took in for one token."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adder.cli.checks import check_new_file
from adder.errors import UsageError

if TYPE_CHECKING:
    from adder.cli.explain_page import Report
    from adder.training.opened import Opened

_PERCENT = 0.01


def explain(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run folder, one of its checkpoints, or the folder of a model."
        ),
    ],
    text: Annotated[
        str | None,
        typer.Argument(
            help="A text, a text file, - for standard input, or nothing for the start of the part "
            "of the run's own text that it was not trained on.",
            show_default=False,
        ),
    ] = None,
    layer: Annotated[
        int, typer.Option(help="The layer to look into, from 0; negative: from the last.")
    ] = -1,
    token: Annotated[
        int, typer.Option(help="The token whose sources to show, from 0; negative: from the last.")
    ] = -1,
    tokens: Annotated[int, typer.Option(help="Read so many tokens at most.", min=2)] = 512,
    last: Annotated[
        int | None,
        typer.Option(
            help="Draw what is shown of that token over the last so many tokens up to it [all].",
            min=2,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--html",
            "--output",
            "-o",
            metavar="FILE.html",
            help="Write a page of it with figures, in one file.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file that is there.")] = False,
    checkpoint: Annotated[
        str | None, typer.Option(help="A checkpoint's name, such as step-00000200 [the newest].")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all numbers as one JSON object.")
    ] = False,
) -> None:
    """Show how long each layer remembers, which tokens it takes in, and what its state still holds.

    A Mamba decides at each token how far it moves its state: the step, Delta. The horizon is the
    number of tokens until a number in the state has faded to 1/e. --html draws the text with each
    token tinted by its step, and what a layer's state still tells of the past.
    """
    _check_output(output, force)
    from adder.cli.explain_page import Report, page, pieces
    from adder.cli.explain_report import show
    from adder.cli.threads import use_threads
    from adder.explanation import explain as explain_model
    from adder.files import replace_file
    from adder.training.opened import open_model

    opened = open_model(run, checkpoint)
    opened.expect_language_model()
    model, vocabulary = opened.reader()
    use_threads(None, model.config.parameter_count())
    name, words = _read(opened, text)
    ids = vocabulary.encode(words)
    if len(ids) < 2:
        raise UsageError(f"{name} has {len(ids)} token, at least 2 are needed: give a longer text")
    seen = explain_model(model, ids[:tokens], layer=layer, token=token)
    if last is not None and last > seen.row.token + 1:
        raise UsageError(
            f"--last is {last}, and there are {seen.row.token + 1} tokens up to token {seen.row.token}: "
            f"give a smaller one, or {'a larger --tokens' if len(ids) > tokens else 'a longer text'}"
        )
    words_of = tuple(pieces(vocabulary, seen.ids.tolist()))
    report = Report(str(opened.path), name, len(ids), words_of, seen, last)
    if output is not None:
        replace_file(output, page(report).encode("utf-8"))
    if as_json:
        print(json.dumps(_values(report, opened.step, output)))
        return
    show(report, output is not None)
    if output is not None:
        print(f"written to {output}")


def _check_output(output: Path | None, force: bool) -> None:
    if output is not None:
        check_new_file("--html", output, force)
    elif force:
        raise UsageError("--force needs --html: without it no file is written")


def _read(opened: "Opened", given: str | None) -> tuple[str, str]:
    """What to call the text, and the text."""
    from adder.data.text import STANDARD_INPUT, read_source
    from adder.training.text import held_out_text

    if given is None:
        if opened.run is None:
            raise UsageError(f"{opened.path} is a model of no run: give a TEXT or a file")
        return held_out_text(opened.run)
    if not given:
        raise UsageError("the text is empty: give a TEXT or a file")
    if given == STANDARD_INPUT or _is_file(given):
        text = read_source(given if given == STANDARD_INPUT else str(Path(given).resolve()))
        return "standard input" if given == STANDARD_INPUT else given, text.text
    return "the text given", given


def _is_file(given: str) -> bool:
    try:
        return Path(given).is_file()
    except (OSError, ValueError):  # too long for a name, or with a null character
        return False


def _values(report: "Report", step: int | None, output: Path | None) -> dict[str, Any]:
    seen = report.seen
    layers = [
        {
            "layer": index,
            "horizons": [_finite(x) for x in memory.horizons()],
            "horizons_to_1_percent": [_finite(x) for x in memory.horizons(_PERCENT)],
            "mean_step": memory.mean_step,
            "steps": None if memory.steps is None else memory.steps.tolist(),
            "shares": memory.shares.tolist(),
            "kept": None if memory.kept is None else memory.kept.tolist(),
            "held": memory.held,
        }
        for index, memory in enumerate(seen.layers)
    ]
    return {
        "run": report.model,
        "step": step,
        "kind": seen.kind,
        "text": report.name,
        "tokens_of_text": report.total,
        "tokens": list(report.pieces),
        "ids": seen.ids.tolist(),
        "layer": seen.row.layer,
        "token": seen.row.token,
        "layers": layers,
        "output": None if output is None else str(output),
    }


def _finite(x: float) -> float | None:
    """JSON has no infinity: null, of a horizon that has no end."""
    return float(x) if math.isfinite(x) else None
