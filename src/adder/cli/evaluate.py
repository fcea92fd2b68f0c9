"""`adder evaluate`: how well a run predicts a text, or tells labelled sequences apart."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adder.cli.evaluate_classes import evaluate_classifier
from adder.errors import UsageError

if TYPE_CHECKING:
    import torch

    from adder.data.synthetic import Synthetic
    from adder.training.opened import Opened
    from adder.training.run_folder import Run

_LENGTH = 2048
_TOKENS_OF_TASK = 100_000


def evaluate(
    run: Annotated[
        Path,
        typer.Argument(help="A run folder, one of its checkpoints, or the folder of a model."),
    ],
    source: Annotated[
        str | None,
        typer.Argument(
            help='A text file, a folder, "-" for standard input; for a classifier labelled '
            "sequences, as adder train takes them. Or nothing for the part of the run's own "
            "source that it was not trained on.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="A checkpoint's name, such as step-00000200 [the newest].")
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            help="Tokens to read at once; the result does not depend on it [2048]. Of a task: "
            "tokens of a row, beyond those of the training too [as in training].",
            min=1,
        ),
    ] = None,
    view: Annotated[
        str | None,
        typer.Option(
            help="How a classifier reads: convolution (whole sequences), recurrence (in chunks, "
            "with a state), or both, compared [convolution]."
        ),
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            help="Steps of a chunk of the recurrence, 1 for sample by sample [64].", min=1
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help="How many of the training's steps pass in one of these, or auto: its sampling "
            "rate over that of SOURCE [1]."
        ),
    ] = None,
    sequences: Annotated[
        int | None, typer.Option(help="Read so many, evenly spread, and not all.", min=1)
    ] = None,
    test_files: Annotated[
        str | None, typer.Option(help="Which wav files to read, as adder train takes it.")
    ] = None,
    mix: Annotated[
        bool | None,
        typer.Option("--mix", help="Average the channels of wav files.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Print bits per byte and perplexity over a whole text, read as one stream.

    Of a classifier, print accuracy and loss: over the test part, or the part held out, or SOURCE;
    of a run on a task, over rows that no training saw.
    """
    from adder.training.device import choose_device
    from adder.training.opened import open_model

    target = choose_device(device)
    opened = open_model(run, checkpoint)
    options: dict[str, Any] = {
        **{"view": view, "chunk": chunk, "rate": rate, "sequences": sequences},
        **{"test_files": test_files, "mix": mix},
    }
    given = {name: value for name, value in options.items() if value is not None}
    if not opened.is_classifier:
        task = None if source is not None or opened.run is None else _task_of(opened.run)
        if task is not None:
            rows = given.pop("sequences", None)
        if given:
            option = "--" + next(iter(given)).replace("_", "-")
            raise UsageError(f"{option} is for classifiers, and {run} is a language model")
        if task is not None:
            _evaluate_task(opened, task, length, rows, target, as_json)
            return
        _evaluate_text(opened, source, length or _LENGTH, target, as_json)
        return
    if length is not None:
        raise UsageError(f"--length is for language models, and {run} is a classifier: see --chunk")
    evaluate_classifier(opened, source, given, target, as_json)


def _task_of(run: "Run") -> "Synthetic | None":
    from adder.training.synthetic import run_synthetic

    return run_synthetic(run.config.source, run.path)


def _evaluate_task(
    opened: "Opened",
    task: "Synthetic",
    length: int | None,
    rows: int | None,
    target: "torch.device",
    as_json: bool,
) -> None:
    from adder.training.synthetic import answer

    assert opened.run is not None
    model, _ = opened.language_model()
    length = length or task.length
    rows = rows or max(4, _TOKENS_OF_TASK // length)
    found = answer(model.to(target), task, rows, length, opened.run.training.seed)
    if as_json:
        values = {
            **{"run": str(opened.path), "step": opened.step, "source": task.name},
            **{"length": length, "sequences": rows, "answers": found.asked},
            **{"accuracy": found.accuracy, "loss": found.loss},
        }
        print(json.dumps(values))
        return
    print(
        f"{found.accuracy:.2%} of {found.asked:,} answers right (loss {found.loss:.4f}) in {rows:,} "
        f"rows of {length:,} tokens of {task.name}"
    )


def _evaluate_text(
    opened: "Opened", source: str | None, length: int, target: "torch.device", as_json: bool
) -> None:
    from adder.data.text import read_source
    from adder.training.evaluation import encode_for_evaluation, evaluate_text
    from adder.training.text import held_out_text

    if source is not None:
        given = read_source(source)
        name, text = given.name, given.text
    elif opened.run is None:
        raise UsageError(f"{opened.path} is a model of no run: give a SOURCE to evaluate on")
    else:
        name, text = held_out_text(opened.run)
    model, vocabulary = opened.reader()
    ids, size = encode_for_evaluation(vocabulary, text, name)
    result = evaluate_text(model.to(target), ids, length=length)
    bits_per_byte = result.bits_per(size)
    if as_json:
        values = {
            "run": str(opened.path),
            "step": opened.step,
            "source": name,
            "tokens": result.tokens,
            "bytes": size,
            "loss": result.loss,
            "perplexity": result.perplexity,
            "bits_per_byte": bits_per_byte,
        }
        print(json.dumps(values))
        return
    print(
        f"{bits_per_byte:.4f} bits per byte, perplexity {result.perplexity:.4f} per token "
        f"(loss {result.loss:.4f}) over {result.tokens:,} tokens, {size:,} bytes of {name}"
    )
