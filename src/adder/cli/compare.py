"""`adder compare`: RNN, Transformer, S4 and Mamba at one size, measured on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adder.cli.bench_run import Moment, kept, write_json
from adder.cli.checks import check_file, check_known, check_new_file
from adder.errors import UsageError

if TYPE_CHECKING:
    from adder.comparison.plan import Plan

_PARTS_OF_TIME = 100


def compare(
    source: Annotated[
        str | None,
        typer.Argument(
            help="The text to learn, as adder train takes it [the prose of Python's manual].",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Four models and shorter lengths: two minutes.")
    ] = False,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="mamba, mamba2, s4, s4d, transformer, lstm or gru; may be given several times "
            "[mamba mamba2 s4 transformer lstm; quick: without mamba2]."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="training, generation or quality; may be given several times [everything]."
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="What is learned for quality: text, selective-copying or induction-heads; may be given several "
            "times [all three].",
        ),
    ] = None,
    scaled: Annotated[
        bool,
        typer.Option(
            "--scaled",
            help="Quality at the size of adder train TASK: rows of 256 tokens, minutes for each model and task.",
        ),
    ] = False,
    seeds: Annotated[
        int, typer.Option(min=1, help="Train for quality so often, from other weights and data.")
    ] = 1,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Take so long at most; what does not fit is named [11.5; quick: 2; scaled: 120].",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="[as many as there are cores]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all figures; - prints them instead."),
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE.html", help="Write a page of them, in one file."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the page that is there.")] = False,
) -> None:
    """Measure RNN, Transformer, S4 and Mamba of one size beside each other.

    How fast they learn from longer and longer rows; how fast they write after longer and longer
    contexts, and what state they keep; what they learn from equally many tokens of a text and of
    two tasks: selective copying and induction heads. Ctrl-C keeps what was measured.
    """
    if json_file is not None and str(json_file) != "-":
        check_file("--json", json_file)
    if html_file is not None:
        check_new_file("--html", html_file, force)
    elif force:
        raise UsageError("--force needs --html: without it no page is written")

    import torch

    from adder.comparison.plan import PARTS, TASKS, Plan, quick_plan, scaled_plan
    from adder.models.config import LAYERS
    from adder.training.device import choose_device

    check_known("--model", model, LAYERS)
    check_known("--only", only, PARTS)
    check_known("--task", task, TASKS)
    if quick and scaled:
        raise UsageError("--quick and --scaled exclude each other")
    if (task or scaled) and only and "quality" not in only:
        raise UsageError(
            f"{'--task' if task else '--scaled'} says what is learned: add --only quality"
        )
    if source is not None:
        for option, given, part in (("--only", only, "quality"), ("--task", task, "text")):
            if given and part not in given:
                raise UsageError(f"{source} would not be read: {option} leaves {part} out")
    changes: dict[str, Any] = {
        **{"source": source, "seeds": tuple(range(seeds))},
        **{"device": str(choose_device(device))},
    }
    if model:
        changes["layers"] = tuple(dict.fromkeys(model))
    if only:
        changes["parts"] = tuple(part for part in PARTS if part in only)
    if task:
        changes["tasks"] = tuple(each for each in TASKS if each in task)
    if minutes is not None:
        changes["seconds"] = minutes * 60
    if threads is not None:
        torch.set_num_threads(threads)
    make = quick_plan if quick else scaled_plan if scaled else Plan
    _run(make(**changes), json_file, html_file)


def _run(plan: "Plan", json_file: Path | None, html_file: Path | None) -> None:
    from adder.comparison.page import page as html_page
    from adder.comparison.report import page
    from adder.comparison.run import Run
    from adder.files import replace_file
    from adder.training.progress import Display, make_display

    display: Display | None = None

    def show(share: float, words: str) -> None:
        assert display is not None
        display.update(Moment(min(_PARTS_OF_TIME, int(share * _PARTS_OF_TIME)), words))

    run = Run(plan, show)

    def save() -> None:
        write_json(run.results, json_file)
        if html_file is not None:
            replace_file(html_file, html_page(run.results).encode("utf-8"))

    def told() -> str:
        where = "" if html_file is None else f"\n\nthe page is {html_file}"
        return page(run.results) + where

    display = make_display(_PARTS_OF_TIME)
    with kept(display, run.results, told, save, json_file):
        run.run()
