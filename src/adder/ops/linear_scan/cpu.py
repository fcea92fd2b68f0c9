"""The C++ kernels of the linear scan: which types they serve, and how the tensors reach them."""

from typing import Any

import torch
from torch import Tensor

from adder.ops.dtypes import arithmetic
from adder.ops.native import STORAGE, address, rows, side_by_side, threads


def serves(dtype: torch.dtype) -> bool:
    """The kernels serve float32, float64 and bfloat16."""
    return dtype in STORAGE


def forward(
    kernels: Any, a: Tensor, x: Tensor, state: Tensor | None, reverse: bool, seq_idx: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return h and the last state: a, x (b l c), state (b c) in arithmetic type."""
    (b, length, c), working = x.shape, arithmetic(x.dtype)
    a, x = side_by_side(a), side_by_side(x)
    state = None if state is None else state.contiguous()
    seq_idx = None if seq_idx is None else seq_idx.contiguous()
    h, last = x.new_empty(b, length, c), x.new_empty(b, c, dtype=working)
    kernels.linear_scan(
        STORAGE[x.dtype],
        threads(),
        (b, length, c),
        reverse,
        address(seq_idx),
        rows(a),
        rows(x),
        address(state),
        rows(h),
        address(last),
    )
    return h, last


def backward(
    kernels: Any,
    a: Tensor,
    h: Tensor,
    state: Tensor | None,
    reverse: bool,
    seq_idx: Tensor | None,
    dh: Tensor,
    dlast: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a, x and state."""
    b, length, c = a.shape
    a, h, dh = side_by_side(a), side_by_side(h), side_by_side(dh)
    dlast = dlast.contiguous()
    state = None if state is None else state.contiguous()
    seq_idx = None if seq_idx is None else seq_idx.contiguous()
    da, dx, dstate = a.new_empty(b, length, c), a.new_empty(b, length, c), dlast.new_empty(b, c)
    kernels.linear_scan_backward(
        STORAGE[a.dtype],
        threads(),
        (b, length, c),
        reverse,
        address(seq_idx),
        rows(a),
        rows(h),
        address(state),
        rows(dh),
        address(dlast),
        rows(da),
        rows(dx),
        address(dstate),
    )
    return da, dx, dstate
