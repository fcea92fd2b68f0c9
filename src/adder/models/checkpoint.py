"""A model in a folder: config.json and model.safetensors. Nothing here unpickles."""

import json
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from adder.errors import DamagedFile, UsageError
from adder.layers.quantized import QuantizedEmbedding, QuantizedLinear
from adder.models.checked import ModelConfig

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
VOCABULARY = "vocabulary.json"  # beside a language model that reads text
# A config.json that names no kind is of the first one there was.
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
        fill(model, tensors, Path(path))
        return model.eval()

    def save_pretrained(self, path: str | Path) -> None:
        """Write config.json and model.safetensors into the folder `path`."""
        write(self, self.config, Path(path))


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


def write(model: nn.Module, config: ModelConfig, folder: Path) -> None:
    """Write the model into `folder`, which is made if need be. A file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = {} if config.kind == _FIRST_KIND else {"kind": config.kind}
    described = {**kind, "model": config.to_dict()}
    contents = {
        WEIGHTS: save(model_tensors(model)),
        CONFIG: (json.dumps(described, indent=2) + "\n").encode(),
    }
    for name, data in contents.items():
        temporary = folder / f".{name}.new"
        try:
            temporary.write_bytes(data)
            temporary.replace(folder / name)
        finally:
            temporary.unlink(missing_ok=True)


def read(folder: Path, config_class: type[Config]) -> tuple[Config, dict[str, Tensor]]:
    """Return what `write` wrote.

    Raises:
        UsageError: there is no such folder, or no model of this kind in it.
        DamagedFile: a file is not what it should be.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            if (folder / "checkpoints").is_dir():
                raise UsageError(f"{folder} is a training run: adder.training.open_run reads it")
            raise UsageError(f"{folder}: no model here: {name} is missing")
    kind, values = _described(folder)
    if kind in _READERS and kind != config_class.kind:
        raise UsageError(f"{folder} holds another kind of model: {_READERS[kind]} reads it")
    try:
        config = config_class.from_dict(values)
    except (ValueError, AttributeError, TypeError) as error:
        raise DamagedFile(f"{folder / CONFIG}: not a model's config: {error}") from error
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise DamagedFile(f"{folder / WEIGHTS}: cannot be read: {error}") from error
    count = sum(each.numel() for each in tensors.values())
    if count != config.stored_count():  # before a model of the config's sizes takes memory
        raise DamagedFile(
            f"{folder / WEIGHTS}: holds {count} numbers, and {folder / CONFIG} asks for {config.stored_count()}"
        )
    return config, tensors


def kind_of(folder: Path) -> str | None:
    """Return "language_model" or "classifier", or None where the folder holds no model.

    Raises:
        DamagedFile: its config.json is not what `write` wrote.
    """
    if not all((folder / name).is_file() for name in (CONFIG, WEIGHTS)):
        return None
    kind, _ = _described(folder)
    if kind not in _READERS:
        raise DamagedFile(f"{folder / CONFIG}: {kind!r} is no kind of model that adder knows")
    return kind


def _described(folder: Path) -> tuple[str, dict[str, Any]]:
    try:
        values: Any = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return values.get("kind", _FIRST_KIND), values.get("model", values)
    except (ValueError, AttributeError) as error:
        raise DamagedFile(f"{folder / CONFIG}: not a model's config: {error}") from error


@torch.no_grad()
def fill(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy `tensors` into what `model_tensors` gives of the model: all of them, of the right shapes, and no others.

    Raises:
        DamagedFile: a tensor is missing, unknown, of another shape, or of a type that would be rounded without a
            word; the message names it.
    """
    parameters = _stored(model)
    floats = {name for name, _ in model.named_parameters()}
    for name in sorted(parameters.keys() ^ tensors.keys()):
        problem = "is missing" if name in parameters else "is no parameter of this model"
        raise DamagedFile(f"{source}: {name} {problem}")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise DamagedFile(
                f"{source}: {name} has shape {tuple(tensors[name].shape)}, expected {tuple(parameter.shape)}"
            )
        kind = tensors[name].dtype
        if kind != parameter.dtype and not (name in floats and kind.is_floating_point):
            raise DamagedFile(f"{source}: {name} is {kind}, expected {parameter.dtype}")
        parameter.copy_(tensors[name])
