"""`adder evaluate`: how well a run predicts a text."""

import json
from pathlib import Path
from typing import Annotated

import typer

from adder.errors import UsageError


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder, or one of its checkpoints.")],
    source: Annotated[
        str | None,
        typer.Argument(
            help='A text file, a folder, "-" for standard input; or nothing for the part of the '
            "run's own text that it was not trained on.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="A checkpoint's name, such as step-00000200 [the newest].")
    ] = None,
    length: Annotated[
        int, typer.Option(help="Tokens to read at once; the result does not depend on it.", min=1)
    ] = 2048,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Print bits per byte and perplexity over a whole text, read as one stream."""
    from adder.data.text import read_source, split_by_position
    from adder.training.device import choose_device
    from adder.training.evaluation import evaluate_text
    from adder.training.run_folder import open_run
    from adder.training.text import read_run_source

    target = choose_device(device)
    opened = open_run(run, checkpoint)
    if source is None:
        own = read_run_source(opened)
        fraction = opened.training.validation
        name, text = f"the validation part of {own.name}", split_by_position(own.text, fraction)[1]
        if not text:
            raise UsageError(f"{run} was trained on its whole text: give a SOURCE to evaluate on")
    else:
        given = read_source(source)
        name, text = given.name, given.text
    ids = opened.vocabulary.encode(text)
    if ids.size < 2:
        raise UsageError(f"{name} is a single token: there is nothing to predict")
    result = evaluate_text(opened.model().to(target), ids, length=length)
    # The first token is read, not predicted.
    size = len(text.encode("utf-8")) - len(opened.vocabulary.decode(ids[:1]).encode("utf-8"))
    bits_per_byte = result.bits_per(max(1, size))
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
