"""The C++ kernels of the short convolution: which types they serve, and how the tensors reach them."""

from typing import Any

import torch
from torch import Tensor

from adder.ops.native import STORAGE, address, rows, side_by_side, threads


def serves(dtype: torch.dtype) -> bool:
    """The kernels serve float32, float64 and bfloat16."""
    return dtype in STORAGE


def forward(
    kernels: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    state: Tensor | None,
    seq_idx: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return y and the last inputs: weight (d k) and bias in arithmetic type, state in x's."""
    (b, length, d), k = x.shape, weight.shape[1]
    x, taps = side_by_side(x), weight.t().contiguous()
    bias = None if bias is None else bias.contiguous()
    state = None if state is None else state.contiguous()
    seq_idx = None if seq_idx is None else seq_idx.contiguous()
    y, last = x.new_empty(b, length, d), x.new_empty(b, k - 1, d)
    kernels.short_convolution(
        STORAGE[x.dtype],
        threads(),
        (b, length, d, k),
        activation == "silu",
        address(seq_idx),
        rows(x),
        address(taps),
        address(bias),
        address(state),
        rows(y),
        address(last),
    )
    return y, last


def backward(
    kernels: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    state: Tensor | None,
    seq_idx: Tensor | None,
    dy: Tensor,
    dlast: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight, bias and state."""
    (b, length, d), k = x.shape, weight.shape[1]
    x, taps, dy = side_by_side(x), weight.t().contiguous(), side_by_side(dy)
    dlast = dlast.contiguous()
    bias = None if bias is None else bias.contiguous()
    state = None if state is None else state.contiguous()
    seq_idx = None if seq_idx is None else seq_idx.contiguous()
    dx, dstate = x.new_empty(b, length, d), x.new_empty(b, k - 1, d)
    parts = taps.new_empty(b, kernels.short_convolution_parts(length), k + 1, d)
    summed = taps.new_empty(k + 1, d)
    kernels.short_convolution_backward(
        STORAGE[x.dtype],
        threads(),
        (b, length, d, k),
        activation == "silu",
        address(seq_idx),
        rows(x),
        address(taps),
        address(bias),
        address(state),
        rows(dy),
        address(dlast),
        rows(dx),
        address(dstate),
        address(parts),
        address(summed),
    )
    return dx, summed[:k].t().contiguous(), summed[k].clone(), dstate
