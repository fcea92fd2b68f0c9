"""A model in a folder: config.json and its tensors. Nothing here runs code that lies in a file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from adder.errors import DamagedFile, UsageError
from adder.files import replacing
from adder.layers.quantized import QuantizedEmbedding, QuantizedLinear
from adder.models.checked import ModelConfig
from adder.models.formats.weights import WEIGHTS, Weights, find_weights, open_weights, seal

CONFIG = "config.json"
_LONGEST_CONFIG = 1 << 20
# A config.json of adder that names no kind is of the first one there was.
_FIRST_KIND = "language_model"
_READERS = {
    "language_model": "adder.LanguageModel.from_pretrained",
    "classifier": "adder.SequenceClassifier.from_pretrained",
}

Config = TypeVar("Config", bound=ModelConfig)


class Pretrained(nn.Module):
    """A model that lies in a folder as config.json and model.safetensors. Abstract."""

    config_class: ClassVar[type[ModelConfig]]
    config: ModelConfig

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Return the model in the folder `path`: config.json and model.safetensors, as `save_pretrained` wrote them."""
        config, tensors = read(Path(path), cls.config_class)
        model = cls(config)
        load(model, tensors)
        return model.eval()

    def save_pretrained(self, path: str | Path) -> None:
        """Write config.json and model.safetensors into the folder `path`."""
        kind = {} if self.config.kind == _FIRST_KIND else {"kind": self.config.kind}
        write(
            model_tensors(self), {**kind, "model": self.config.to_dict()}, self.config, Path(path)
        )


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what is stored of a model by name, contiguous, a shared tensor under its first name only: its parameters,
    and the codes and scales of rounded matrices."""
    return {name: each.detach().contiguous() for name, each in _stored(model).items()}


def _stored(model: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = dict(model.named_parameters())
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            own = {f"{name}.weight": module.weight, f"{name}.scales": module.scales}
            found |= {each: tensor for each, tensor in own.items() if id(tensor) not in seen}
            seen |= {id(tensor) for tensor in own.values()}
    return found


def write(
    tensors: dict[str, Tensor],
    described: dict[str, Any],
    config: ModelConfig,
    folder: Path,
    rename: Callable[[str], str] = str,
) -> None:
    """Write tensors and their config.json into `folder`, which is made if need be. A file appears whole or not at all.

    `config` is what a reader will make of `described`: the weights carry it, and their own digest. `rename` gives the
    names in the file.
    """
    named = {rename(name): each for name, each in tensors.items()}
    sealed = seal(tensors, config.to_dict())
    write_files(described, folder, WEIGHTS, lambda path: save_file(named, path, sealed))


def write_files(
    described: dict[str, Any], folder: Path, weights: str, save: Callable[[Path], None]
) -> None:
    """Write config.json and the weights into a folder: both are whole before either takes its place.

    Raises:
        OSError: the disk is full, or the folder cannot be written; what was there is there still.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(folder / CONFIG) as first, replacing(folder / weights) as second:
            first.write_bytes((json.dumps(described, indent=2) + "\n").encode())
            save(second)
    except (SafetensorError, RuntimeError) as error:  # as which the writers report a full disk
        raise OSError(f"cannot write {folder / weights}: {error}") from error


def read(folder: Path, config_class: type[Config]) -> tuple[Config, Weights]:
    """Return the config and the tensors of a model that `Pretrained.save_pretrained` wrote.

    Raises:
        UsageError: there is no such folder, or no model of this kind in it.
        DamagedFile: a file is not what it should be.
    """
    weights = expect_model(folder)
    kind, values = _described(folder)
    if kind in _READERS and kind != config_class.kind:
        raise UsageError(f"{folder} holds another kind of model: {_READERS[kind]} reads it")
    try:
        config = config_class.from_dict(values)
    except (ValueError, AttributeError, TypeError) as error:
        raise DamagedFile(f"{folder / CONFIG}: not a model's config: {error}") from error
    tensors = open_weights(weights)
    expect_room(config, tensors, folder / CONFIG)
    return config, tensors


def expect_model(folder: Path, config: str = CONFIG) -> Path:
    """Return the file with a folder's weights, or say what is missing.

    Raises:
        UsageError: there is no such folder, or no model in it.
    """
    weights = find_weights(folder)
    if weights is not None and (folder / config).is_file():
        return weights
    if (folder / "checkpoints").is_dir():
        raise UsageError(f"{folder} is a training run: adder.training.open_run reads it")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: give the folder of a model")
    missing = config if weights is not None or not (folder / config).is_file() else WEIGHTS
    raise UsageError(f"{folder}: no model here: {missing} is missing")


def expect_room(config: ModelConfig, weights: Weights, source: Path) -> None:
    """Refuse a config that asks for far more than its weights hold, before a model of its sizes takes memory.

    Raises:
        DamagedFile: it does, or the weights were written with another config.
    """
    count = weights.count
    if (
        config.stored_count() > 2 * count + 10_000
    ):  # what is near is named tensor by tensor, in `load`
        raise DamagedFile(
            f"{weights.source}: holds {count} numbers, and {source} asks for {config.stored_count()}"
        )
    layers = getattr(config, "n_layer", 1)
    if layers > len(weights):
        raise DamagedFile(
            f"{weights.source}: holds {len(weights)} tensors, and {source} asks for {layers} layers"
        )
    weights.expect_config(config.to_dict(), source)


def kind_of(folder: Path) -> str | None:
    """Return "language_model" or "classifier", or None where the folder holds no model.

    Raises:
        DamagedFile: its config.json is of no kind of model.
    """
    if find_weights(folder) is None:
        return None
    if not (folder / CONFIG).is_file():
        return _FIRST_KIND if (folder / "params.json").is_file() else None
    kind, _ = _described(folder)
    if kind not in _READERS:
        raise DamagedFile(f"{folder / CONFIG}: {kind!r} is no kind of model that adder knows")
    return kind


def _described(folder: Path) -> tuple[str, dict[str, Any]]:
    values = read_json(folder / CONFIG)
    return values.get("kind", _FIRST_KIND), values.get("model", values)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a config.json.

    Raises:
        DamagedFile: it is none, or says a thing twice.
    """
    try:
        if path.stat().st_size > _LONGEST_CONFIG:
            raise ValueError("it is longer than any")
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
        return values
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path}: not a model's config: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name} stands there twice")
        values[name] = value
    return values


def load(model: nn.Module, weights: Weights) -> None:
    """Copy a file's tensors into a model, as `fill` does, and refuse numbers that are damaged.

    Raises:
        DamagedFile: as `fill`; a NaN or an infinity; or the numbers are not those that were written.
    """
    fill(model, weights, weights.source)
    weights.verify()


@torch.no_grad()
def fill(model: nn.Module, tensors: dict[str, Tensor] | Weights, source: Path) -> None:
    """Copy `tensors` into what `model_tensors` gives of the model: all of them, of the right shapes, and no others.

    Raises:
        DamagedFile: a tensor is missing, unknown, of another shape, or of a type that would be rounded without a
            word; the message names it.
    """
    parameters = _stored(model)
    _expect_names(parameters, tensors, source)
    floats = {name for name, _ in model.named_parameters()}
    for name, parameter in parameters.items():
        given = tensors[name]
        if given.dtype != parameter.dtype and not (
            name in floats and given.dtype.is_floating_point
        ):
            raise DamagedFile(f"{source}: {name} is {given.dtype}, expected {parameter.dtype}")
        parameter.copy_(given)


def expect_stored(model: nn.Module, weights: Weights) -> None:
    """Compare the names and shapes in a file's header with those of a model.

    Raises:
        DamagedFile: they differ; the message names the first tensor that does.
    """
    _expect_names(_stored(model), weights, weights.source)


def _expect_names(
    expected: dict[str, Tensor], given: dict[str, Tensor] | Weights, source: Path
) -> None:
    for name in sorted(expected.keys() ^ given.keys()):
        problem = "is missing" if name in expected else "is no parameter of this model"
        raise DamagedFile(f"{source}: {name} {problem}")
    shapes = given.shapes if isinstance(given, Weights) else {k: v.shape for k, v in given.items()}
    for name, tensor in expected.items():
        if tuple(shapes[name]) != tuple(tensor.shape):
            raise DamagedFile(
                f"{source}: {name} has shape {tuple(shapes[name])}, expected {tuple(tensor.shape)}"
            )
