"""What the functions of this folder ask of their arguments, and the one line they answer with."""

import math
import operator
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
    if x.layout != torch.strided:
        raise UsageError(
            f"{name}: {argument} is a sparse tensor ({x.layout}), expected a dense one: call to_dense()"
        )
    if x.is_meta:
        raise UsageError(
            f"{name}: {argument} is on the meta device, which holds no numbers, expected a tensor that has them"
        )
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


def came(value: Any) -> str:
    """A value as it is written in messages: on one line, and not a long one."""
    line = " ".join(repr(value).split())
    return line if len(line) <= 60 else line[:57] + "..."


def whole(name: str, argument: str, value: Any) -> int:
    """A whole number, at least 1; NumPy's integers and tensors that hold one are such numbers."""
    truth = isinstance(value, bool) or getattr(value, "dtype", None) in (torch.bool, np.bool_)
    try:
        number = 0 if truth else operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        number = 0
    if number < 1:
        raise UsageError(f"{name}: {argument} is {came(value)}, expected a whole number, 1 or more")
    return number


def real(value: Any) -> float:
    """The value of one real number, without its gradient; NaN for whatever is none."""
    if isinstance(value, (str, bytes)):
        return math.nan
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


def positive(name: str, argument: str, value: Any) -> float:
    """One finite number above zero."""
    number = real(value)
    if not 0 < number < math.inf:
        raise UsageError(f"{name}: {argument} is {came(value)}, expected a number above 0")
    return number


def did_not_overflow(name: str, y: Tensor, times: Tensor, *, unit: str = "time") -> Tensor:
    """y (*times, ...) as it is, or refused where it left the range of float64.

    times: when each of y's first axes happens, in units of time or in steps.
    """
    wrong = ~torch.isfinite(y.detach()).reshape(*times.shape, -1).all(-1)
    if bool(wrong.any()):
        when = float(times.detach()[wrong].min())
        raise UsageError(
            f"{name}: the response grows past the largest float64 by {unit} {when:g}: give a shorter time"
        )
    return y


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
    if not isinstance(value, str) or value not in allowed:
        raise UsageError(
            f"{name}: {argument} is {came(value)}, expected one of {', '.join(allowed)}"
        )
    return value
