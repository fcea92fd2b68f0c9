"""Language models as others publish them: which format a folder is in, and how it is written."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from adder.errors import DamagedFile, UsageError
from adder.models.checkpoint import (
    CONFIG,
    expect_model,
    expect_room,
    model_tensors,
    read,
    read_json,
    write,
    write_files,
)
from adder.models.config import LanguageModelConfig
from adder.models.formats import huggingface, mamba_ssm
from adder.models.formats.weights import PICKLE, Weights, open_weights

if TYPE_CHECKING:
    from adder.models.language_model import LanguageModel

Format = Literal["huggingface", "mamba_ssm", "adder"]
FORMATS: tuple[Format, ...] = ("huggingface", "mamba_ssm", "adder")
_PARAMS = "params.json"  # of Mamba-Codestral's own release
_EMBEDDING, _HEAD = "backbone.embedding.weight", "lm_head.weight"


class _Reader(NamedTuple):
    """How a published folder is read: the file with its sizes, what they mean, and our name of a tensor."""

    file: str
    config_from: Callable[[dict[str, Any]], LanguageModelConfig]
    our_name: Callable[[str], str]


def format_of(folder: Path) -> str:
    """Return "huggingface", "mamba_ssm", "codestral" or "adder".

    Raises:
        UsageError: there is no model in the folder.
        DamagedFile: its config.json is none of them.
    """
    if not (folder / CONFIG).is_file() and (folder / _PARAMS).is_file():
        return "codestral"
    expect_model(folder)
    values = read_json(folder / CONFIG)
    if "model" in values or "kind" in values:
        return "adder"
    if "model_type" in values:
        return "huggingface"
    if "d_model" in values:
        return "mamba_ssm"
    raise DamagedFile(
        f"{folder / CONFIG}: not a model's config: it has neither model_type, as Hugging Face's have, nor d_model, "
        "as mamba_ssm's have"
    )


_READERS = {
    "huggingface": _Reader(
        CONFIG,
        huggingface.config_from,
        lambda name: name.replace("backbone.embeddings.", "backbone.embedding."),
    ),
    "mamba_ssm": _Reader(CONFIG, mamba_ssm.config_from, str),
    "codestral": _Reader(
        _PARAMS, mamba_ssm.consolidated_config_from, lambda name: name.removeprefix("model.")
    ),
}


def read_language_model(folder: Path) -> tuple[LanguageModelConfig, Weights]:
    """Return the config and the tensors of a language model, under our names, in any format.

    Raises:
        UsageError: there is no model in the folder, or one that a LanguageModel is not; the message names what it asks.
        DamagedFile: a file is not what it should be.
    """
    found = format_of(folder)
    if found == "adder":
        return read(folder, LanguageModelConfig)
    reader = _READERS[found]
    file = folder / reader.file
    weights = expect_model(folder, reader.file)
    values = read_json(file)
    try:
        config = reader.config_from(values)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None
    tensors = open_weights(weights).renamed(reader.our_name)
    expect_room(config, tensors, file)
    if config.tie_embeddings and {_HEAD, _EMBEDDING} <= tensors.keys():
        if not torch.equal(tensors[_HEAD], tensors[_EMBEDDING]):
            raise DamagedFile(
                f"{tensors.source}: {_HEAD} is not the embedding, and {file} says that they are tied"
            )
        tensors = tensors.without(_HEAD)
    return config, tensors


def write_language_model(model: "LanguageModel", folder: Path, format: str | None) -> None:
    """Write a model in one of FORMATS; None is Hugging Face's, and adder's own where that has no such model.

    Raises:
        UsageError: the format is unknown, or has no such model; nothing was written.
    """
    config = model.config
    if format is None:
        try:
            huggingface.values_of(config)
            format = "huggingface"
        except UsageError:
            format = "adder"
    if format == "adder":
        write(model_tensors(model), {"model": config.to_dict()}, config, folder)
    elif format == "huggingface":
        _write_huggingface(model, folder)
    elif format == "mamba_ssm":
        _write_mamba_ssm(model, folder)
    else:
        raise UsageError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")


def _write_huggingface(model: "LanguageModel", folder: Path) -> None:
    """Write config.json and model.safetensors, the embedding without its padding: its rows are logits there."""
    config = dataclasses.replace(model.config, pad_vocab_size_multiple=1)
    described = huggingface.values_of(config)
    tensors = model_tensors(model)
    for name in (_EMBEDDING, _HEAD):
        if name in tensors:
            tensors[name] = tensors[name][: config.vocab_size]
    described["dtype"] = str(tensors[_EMBEDDING].dtype).removeprefix("torch.")
    read_back = huggingface.config_from(described)
    write(tensors, described, read_back, folder, huggingface.their_name)


def _write_mamba_ssm(model: "LanguageModel", folder: Path) -> None:
    """Write config.json and pytorch_model.bin, which is what mamba_ssm reads: both ends of a tie are in it."""
    described = mamba_ssm.values_of(model.config)
    tensors: dict[str, Tensor] = model_tensors(model)
    if model.config.tie_embeddings:
        tensors[_HEAD] = tensors[_EMBEDDING]
    write_files(described, folder, PICKLE, lambda path: torch.save(tensors, path))
