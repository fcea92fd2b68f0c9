"""`adder convert`: a published checkpoint in, a model's folder out; or a language model with smaller weights."""

import json
from pathlib import Path
from typing import Annotated

import typer

from adder.cli.convert_format import convert_format
from adder.cli.convert_weights import WEIGHTS, convert_weights
from adder.errors import UsageError

_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="A checkpoint of state-spaces/s4's example.py (the standalone S4D): .pt, .pth or "
            ".safetensors. With --weights a run of a language model, one of its checkpoints, or "
            "the folder of a model; without it also a folder of Hugging Face's or mamba_ssm's, or a "
            "name on the Hugging Face Hub.",
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make of it.")],
    prenorm: Annotated[
        bool, typer.Option("--prenorm", help="It was trained with prenorm=True.")
    ] = False,
    format: Annotated[
        str | None,
        typer.Option(
            help="Write a language model as huggingface, mamba_ssm or adder has it [huggingface]."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Round a language model's weights: int8 (8.5 bits each), or int4 (4.5 bits in "
            "the large matrices of each block)."
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Measure perplexity before and after on this text file [what the run was not "
            "trained on of its own]."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Convert a published model: a language model from one format to another, or S4D's checkpoint.

    With --weights, round the weights of a language model. adder generate, evaluate and classify
    read what is written. Nothing but tensors and plain values is unpickled.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already: give another DST")
    if weights is not None:
        if weights not in WEIGHTS:
            raise UsageError(f"--weights must be {' or '.join(WEIGHTS)}, got {weights}")
        if prenorm or format is not None:
            other = (
                "--prenorm is for a checkpoint of S4D" if prenorm else "--format for float weights"
            )
            raise UsageError(f"{other}, and --weights for another SRC")
        convert_weights(source, target, weights, text, as_json)
        return
    if text is not None:
        raise UsageError("--text needs --weights: nothing is measured without it")
    from_file = source.is_file() or (not source.exists() and source.suffix in _CHECKPOINTS)
    if format is not None or not from_file:
        if prenorm:
            raise UsageError("--prenorm is for a checkpoint file of S4D")
        if source.is_file():
            raise UsageError(f"--format is for language models: a folder, and {source} is a file")
        convert_format(source, target, format or "huggingface", as_json)
        return
    _convert_checkpoint(source, target, prenorm, as_json)


def _convert_checkpoint(source: Path, target: Path, prenorm: bool, as_json: bool) -> None:
    from adder.files import shell_word
    from adder.models.standalone_s4d import convert as converted

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
