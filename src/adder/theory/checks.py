"""What the functions of this folder ask of their arguments, and the one line they answer with."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adder.errors import UsageError

# Tensors, NumPy arrays, lists and numbers: what `torch.as_tensor` takes.
TensorLike = Any


def exact(name: str, argument: str, value: TensorLike, *, may_be_complex: bool = False) -> Tensor:
    """The value in float64 (complex128 where complex numbers are allowed), finite, with its gradient."""
    try:
        # By way of NumPy: torch.as_tensor(0.1) would be a float32.
        x = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(
            f"{name}: {argument} is {type(value).__name__}, expected a tensor, an array or lists of numbers"
        ) from None
    if x.is_complex():
        if not may_be_complex:
            raise UsageError(f"{name}: {argument} is complex ({x.dtype}), expected real numbers")
        x = x.to(torch.complex128)
    else:
        x = x.to(torch.float64)
    if not bool(torch.isfinite(x).all()):
        raise UsageError(f"{name}: {argument} has values that are NaN or infinite")
    return x


def shape(x: Tensor) -> str:
    """A shape as it is written in messages."""
    return str(tuple(x.shape))


def whole(name: str, argument: str, value: Any) -> int:
    """A whole number, at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 1:
        raise UsageError(f"{name}: {argument} is {value!r}, expected a whole number, 1 or more")
    return int(value.__index__())


def positive(name: str, argument: str, value: Any) -> float:
    """One finite number above zero."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise UsageError(f"{name}: {argument} is {value!r}, expected a number above 0")
    return number


def step_size(name: str, value: TensorLike) -> Tensor:
    """dt, one number or more, each above zero."""
    dt = exact(name, "dt", value)
    if not bool((dt > 0).all()):
        lowest = dt.min().item() if dt.numel() else math.nan
        raise UsageError(f"{name}: dt is {lowest:g}, expected more than 0")
    return dt


def one_step_size(name: str, value: TensorLike) -> Tensor:
    """dt, a single number above zero, without axes."""
    dt = step_size(name, value)
    if dt.numel() != 1:
        raise UsageError(f"{name}: dt has shape {shape(dt)}, expected one number")
    return dt.reshape(())


def one_of(name: str, argument: str, value: Any, allowed: tuple[str, ...]) -> str:
    """One of the words that are allowed."""
    if value not in allowed:
        raise UsageError(f"{name}: {argument} is {value!r}, expected one of {', '.join(allowed)}")
    return str(value)
