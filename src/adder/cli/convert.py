"""`adder convert`: a published checkpoint in, a model's folder out."""

import json
from pathlib import Path
from typing import Annotated

import typer

from adder.errors import UsageError


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="A checkpoint of state-spaces/s4's example.py (the standalone S4D): .pt, .pth or "
            ".safetensors.",
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make of it.")],
    prenorm: Annotated[
        bool, typer.Option("--prenorm", help="It was trained with prenorm=True.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Convert a published checkpoint to a folder that adder evaluate and adder classify read.

    Nothing but tensors and plain values is unpickled.
    """
    from adder.models.standalone_s4d import convert as converted
    from adder.training.files import shell_word

    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already: give another DST")
    model = converted(source, prenorm=prenorm)
    model.save_pretrained(target)
    config = model.config
    if as_json:
        facts = {"source": str(source), "model": str(target), "config": config.to_dict()}
        print(json.dumps({**facts, "parameters": config.parameter_count()}))
        return
    print(
        f"{config.n_layer} layers of S4D, d_model {config.d_model}, state size {config.d_state}, "
        f"{config.d_input} inputs, {config.classes} classes: {config.parameter_count():,} parameters; "
        f"in {target}: adder evaluate {shell_word(target)} SOURCE"
    )
