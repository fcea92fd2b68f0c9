"""The standalone S4D of state-spaces/s4 (models/s4/s4d.py, example.py) as a SequenceClassifier.

Its S4Model is an encoder, layers of S4D with a norm behind (or before) each, a mean over time and a decoder:

    x <- norm(x + dropout(GLU(W dropout(gelu(conv(u) + D u)))))
    K[l] = 2 Re sum_j C_j (exp(dt A_j) - 1) / A_j exp(dt A_j l),  A = -exp(log_A_real) + i A_imag

so B is 1, every channel has an A of its own, and dt is exp(log_dt).
"""

import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adder.errors import DamagedFile, UsageError
from adder.models.checkpoint import fill
from adder.models.classifier import SequenceClassifier
from adder.models.classifier_config import SequenceClassifierConfig

MOST_BYTES = 2**30
_WHAT = "the state dict of S4Model, of state-spaces/s4's example.py"
_PICKLED = (".pt", ".pth", ".ckpt", ".bin")


def convert(path: Path, *, prenorm: bool = False) -> SequenceClassifier:
    """Return the model of a checkpoint of example.py, in evaluation mode.

    Args:
        path: .safetensors, or .pt, .pth, .ckpt or .bin as torch.save writes them, of which nothing but
            tensors and plain values is unpickled: a state dict, or one under "model" as example.py has it.
        prenorm: the option of the same name there, which a state dict does not tell.

    Raises:
        UsageError: the file is of another kind, holds other objects, or a tensor is missing, unknown, of
            another shape, or not finite.
        DamagedFile: it is cut short or damaged.
    """
    tensors = _state_dict(path)
    config = _config(tensors, path, prenorm)
    model = SequenceClassifier(config)
    fill(model, _translated(tensors, config.n_layer), path)
    return model.eval()


def _state_dict(path: Path) -> dict[str, Tensor]:
    held = _load(path)
    if isinstance(held, dict) and isinstance(held.get("model"), dict):
        held = held["model"]
    if not isinstance(held, dict) or not held:
        raise UsageError(f"{path} holds a {type(held).__name__}, expected {_WHAT}")
    for name, value in held.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UsageError(f"{path}: {name} is a {type(value).__name__}, expected {_WHAT}")
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise UsageError(f"{path}: {name} holds something else than finite real numbers")
    return {name.removeprefix("module."): value for name, value in held.items()}


def _load(path: Path) -> Any:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    if not path.is_file():
        raise UsageError(
            f"{path} is no file: give a checkpoint, {', '.join(_PICKLED)} or .safetensors"
        )
    if size > MOST_BYTES:
        raise UsageError(f"{path} has {size / 2**30:.1f} GiB, too large for {_WHAT}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise DamagedFile(f"{path} cannot be read: {error}") from None
    if path.suffix not in _PICKLED:
        raise UsageError(f"{path} is of no known kind: give {', '.join(_PICKLED)} or .safetensors")
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError):
        raise DamagedFile(
            f"{path} is damaged, or not written by torch.save of PyTorch 1.6 or later"
        ) from None
    if unpacked > size:  # torch.save does not compress
        raise DamagedFile(f"{path} is not what torch.save writes: it unpacks to {unpacked} bytes")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise UsageError(
            f"{path} pickles more than tensors and plain values, and adder runs no pickle: "
            "save model.state_dict() alone"
        ) from None
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise DamagedFile(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None


def _shape(tensors: dict[str, Tensor], name: str, axes: int, path: Path) -> list[int]:
    if name not in tensors:
        raise UsageError(f"{path}: {name} is missing, expected {_WHAT}")
    if tensors[name].ndim != axes:
        raise UsageError(
            f"{path}: {name} has shape {tuple(tensors[name].shape)}, expected {axes} axes"
        )
    return list(tensors[name].shape)


def _config(tensors: dict[str, Tensor], path: Path, prenorm: bool) -> SequenceClassifierConfig:
    d, d_input = _shape(tensors, "encoder.weight", 2, path)
    classes, _ = _shape(tensors, "decoder.weight", 2, path)
    modes = _shape(tensors, "s4_layers.0.kernel.log_A_real", 2, path)[1]
    numbers = [
        int(found[1]) for name in tensors if (found := re.match(r"s4_layers\.(\d+)\.", name))
    ]
    layers = max(numbers) + 1
    if layers > len(tensors):
        raise UsageError(f"{path}: s4_layers.{layers - 1} is there, and not all before it")
    expected: dict[str, tuple[int, ...]] = {
        "encoder.weight": (d, d_input),
        "encoder.bias": (d,),
        "decoder.weight": (classes, d),
        "decoder.bias": (classes,),
    }
    for i in range(layers):
        expected |= {f"s4_layers.{i}.{name}": shape for name, shape in _layer(d, modes).items()}
        expected |= {f"norms.{i}.weight": (d,), f"norms.{i}.bias": (d,)}
    for name in sorted(expected.keys() ^ tensors.keys()):
        problem = "is missing" if name in expected else "is not known"
        raise UsageError(f"{path}: {name} {problem}, expected {_WHAT}")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UsageError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, expected {shape}"
            )
    return SequenceClassifierConfig(
        classes=classes,
        d_input=d_input,
        layer="s4d",
        d_model=d,
        n_layer=layers,
        d_state=2 * modes,
        norm="layer",
        prenorm=prenorm,
        final_norm=False,
    )


def _layer(d: int, modes: int) -> dict[str, tuple[int, ...]]:
    return {
        "D": (d,),
        "kernel.C": (d, modes, 2),
        "kernel.log_dt": (d,),
        "kernel.log_A_real": (d, modes),
        "kernel.A_imag": (d, modes),
        "output_linear.0.weight": (2 * d, d, 1),
        "output_linear.0.bias": (2 * d,),
    }


def _translated(tensors: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    ours = {name: tensors[name] for name in tensors if name.startswith(("encoder.", "decoder."))}
    for i in range(layers):
        old, new = f"s4_layers.{i}.", f"layers.{i}.mixer."
        C = tensors[old + "kernel.C"]
        ours |= {
            new + "layer.dt": tensors[old + "kernel.log_dt"],
            new + "layer.A_real": tensors[old + "kernel.log_A_real"],
            new + "layer.A_imag": tensors[old + "kernel.A_imag"],
            new + "layer.B": torch.stack(
                [torch.ones_like(C[..., 0]), torch.zeros_like(C[..., 0])], -1
            ),
            new + "layer.C": C.unsqueeze(0),
            new + "layer.D": tensors[old + "D"].unsqueeze(0),
            new + "output_linear.weight": tensors[old + "output_linear.0.weight"].squeeze(-1),
            new + "output_linear.bias": tensors[old + "output_linear.0.bias"],
            f"layers.{i}.norm.weight": tensors[f"norms.{i}.weight"],
            f"layers.{i}.norm.bias": tensors[f"norms.{i}.bias"],
        }
    return ours
