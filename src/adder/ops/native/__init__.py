"""The compiled module, if this installation has one, and how tensors are handed to it."""

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Strided = tuple[int, int, int]

Matrix = tuple[int, int, int, int, int]

# The kinds of weights.hpp.
WEIGHTS = {torch.float32: 0, torch.bfloat16: 1, "int8": 2, "int4": 3}
STORAGE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}


@dataclass(frozen=True)
class NativeStatus:
    """Whether the C++ kernels serve here: `isa` is the instruction set in use, `reason` says why."""

    available: bool
    isa: str | None
    reason: str


@cache
def module() -> Any | None:
    """Return the compiled module, or None where adder was installed without one.

    A module that is there but cannot be loaded is an error, not a slower adder.
    """
    if importlib.util.find_spec("adder._native") is None:
        return None
    return importlib.import_module("adder._native")


def status() -> NativeStatus:
    """Say whether the C++ kernels serve, with which instruction set, and why."""
    native = module()
    if native is not None:
        isa = native.isa()
        return NativeStatus(True, isa, f"compiled, and this CPU runs its {isa} code")
    note = Path(__file__).parents[2] / "native_missing.txt"
    reason = note.read_text(encoding="utf-8").strip() if note.exists() else "adder was not built"
    return NativeStatus(False, None, reason)


def side_by_side(x: Tensor, last: int = 1) -> Tensor:
    """Return x, copied only if its `last` trailing axes are not contiguous."""
    expected = 1
    for size, stride in zip(x.shape[: -last - 1 : -1], x.stride()[: -last - 1 : -1], strict=True):
        if size != 1 and stride != expected:
            return x.contiguous()
        expected *= size
    return x


def outer_strides(*tensors: Tensor | None) -> tuple[int, ...]:
    """Of the batch and the length of each tensor; zeros for None."""
    return tuple(s for x in tensors for s in ((0, 0) if x is None else x.stride()[:2]))


def rows(x: Tensor | None) -> Strided:
    """Address, batch stride and row stride of a (batch, length, ...) tensor; zeros for None."""
    return (0, 0, 0) if x is None else (x.data_ptr(), x.stride(0), x.stride(1))


def address(x: Tensor | None) -> int:
    """Address of a contiguous tensor; 0 for None."""
    if x is None:
        return 0
    if not x.is_contiguous():
        raise ValueError(f"a kernel needs a contiguous tensor here, and got strides {x.stride()}")
    return x.data_ptr()


def matrix(
    data: Tensor, scales: Tensor | None, rows: int, columns: int, kind: torch.dtype | str
) -> Matrix:
    """A contiguous weight matrix as the kernels know it: kind, sizes, addresses. The caller keeps it alive."""
    return WEIGHTS[kind], rows, columns, address(data), address(scales)


def threads() -> int:
    """How many threads a kernel may use: as many as PyTorch's own operators do."""
    return torch.get_num_threads()
