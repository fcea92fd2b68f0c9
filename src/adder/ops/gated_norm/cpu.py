"""The C++ kernels of the norms: which types they serve, and how the tensors reach them."""

from typing import Any

import torch
from torch import Tensor

from adder.ops.native import STORAGE, address, rows, side_by_side, threads


def serves(dtype: torch.dtype) -> bool:
    """The kernels serve float32, float64 and bfloat16."""
    return dtype in STORAGE


def forward(
    kernels: Any,
    y: Tensor,
    z: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
) -> Tensor:
    """Return the norm of (b l d), gated where z is given; weight in arithmetic type."""
    y, z = side_by_side(y), None if z is None else side_by_side(z)
    weight, out = weight.contiguous(), y.new_empty(y.shape)
    kernels.gated_norm(
        STORAGE[y.dtype],
        threads(),
        (*y.shape, group_size),
        eps,
        norm_before_gate,
        rows(y),
        rows(z),
        address(weight),
        rows(out),
    )
    return out


def backward(
    kernels: Any,
    y: Tensor,
    z: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    dout: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of y, z (empty without a gate) and weight."""
    y, z = side_by_side(y), None if z is None else side_by_side(z)
    dout, weight = side_by_side(dout), weight.contiguous()
    b, length, d = y.shape
    dy, dz = y.new_empty(y.shape), y.new_empty(0 if z is None else y.shape)
    parts = weight.new_empty(kernels.gated_norm_parts(b * length), d)
    dweight = weight.new_empty(d)
    kernels.gated_norm_backward(
        STORAGE[y.dtype],
        threads(),
        (b, length, d, group_size),
        eps,
        norm_before_gate,
        rows(y),
        rows(z),
        address(weight),
        rows(dout),
        rows(dy),
        rows(None if z is None else dz),
        address(parts),
        address(dweight),
    )
    return dy, dz, dweight
