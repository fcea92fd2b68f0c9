"""The C++ kernels of state space duality: which types they serve, and how the tensors reach them."""

from typing import Any

import torch
from torch import Tensor

from adder.ops.dtypes import arithmetic
from adder.ops.native import STORAGE, address, rows, side_by_side, threads
from adder.ops.state_space_dual.portable import Inputs


def serves(inputs: Inputs) -> bool:
    """The kernels serve float32, float64 and bfloat16."""
    return inputs.x.dtype in STORAGE


def forward(native: Any, inputs: Inputs, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the last state, and the state before each chunk, as `portable.forward` does."""
    call = _Call(inputs)
    b, l, h, p, _, n, chunk = call.sizes
    y = torch.empty(inputs.x.shape, dtype=inputs.x.dtype)
    last = torch.empty(b, h, p, n, dtype=call.real)
    saved = torch.empty((b, -(-l // chunk), h, n, p) if save else 0, dtype=call.real)
    native.state_space_dual(
        *call.head(), call.inputs(), call.parameters(), rows(y), address(last), address(saved)
    )
    return y, last, saved


def backward(
    native: Any, inputs: Inputs, saved: Tensor, dy: Tensor, dlast: Tensor | None
) -> list[Tensor]:
    """Return the gradients in the order of `portable.backward`."""
    call = _Call(inputs)
    b, l, h, p, g, n, _ = call.sizes
    dy, saved = side_by_side(dy, 2), saved.contiguous()
    dlast = None if dlast is None else dlast.contiguous()
    dx, ddt, dB, dC = (
        torch.empty(each.shape, dtype=each.dtype)
        for each in (inputs.x, inputs.dt, inputs.B, inputs.C)
    )
    dz = (
        torch.empty(0, dtype=call.real)
        if inputs.z is None
        else torch.empty(dy.shape, dtype=dy.dtype)
    )
    dA, dD, dbias, dstate = (
        torch.empty(0 if each is None else each.shape, dtype=call.real)
        for each in (inputs.A, inputs.D, inputs.dt_bias, inputs.state)
    )
    parts = native.state_space_dual_parts(h, g)
    partial = [
        torch.empty(size, dtype=call.real)
        for size in ((b, h), (b, h, p), (b, h), (b, parts, l, n), (b, parts, l, n))
    ]
    native.state_space_dual_backward(
        *call.head(),
        call.inputs(),
        call.parameters(),
        address(saved),
        rows(dy),
        address(dlast),
        tuple(rows(each if each.numel() else None) for each in (dx, ddt, dB, dC, dz)),
        tuple(each.data_ptr() for each in (dA, dD, dbias, dstate)),
        tuple(each.data_ptr() for each in partial),
    )
    return [dx, ddt, dA, dB, dC, dD, dz, dbias, dstate]


class _Call:
    """The arguments that both passes hand over. It keeps the tensors behind the addresses alive."""

    def __init__(self, inputs: Inputs):
        (b, l, h, p), (g, n) = inputs.x.shape, inputs.B.shape[2:]
        self.real = arithmetic(inputs.x.dtype)
        self.sizes = (b, l, h, p, g, n, inputs.chunk_size)
        self.storage = STORAGE[inputs.x.dtype]
        by_channel = inputs.D is not None and inputs.D.ndim == 2
        self.options = (inputs.dt_softplus, inputs.dt_min, inputs.dt_max, by_channel)
        self.x, self.dt = side_by_side(inputs.x, 2), side_by_side(inputs.dt)
        self.B, self.C = side_by_side(inputs.B, 2), side_by_side(inputs.C, 2)
        self.z = None if inputs.z is None else side_by_side(inputs.z, 2)
        self.A, self.D, self.dt_bias, self.state, self.seq_idx = (
            None if each is None else each.contiguous()
            for each in (inputs.A, inputs.D, inputs.dt_bias, inputs.state, inputs.seq_idx)
        )

    def head(self) -> tuple[Any, ...]:
        return (self.storage, threads(), self.sizes, self.options, address(self.seq_idx))

    def inputs(self) -> tuple[Any, ...]:
        return tuple(rows(each) for each in (self.x, self.dt, self.B, self.C, self.z))

    def parameters(self) -> tuple[int, ...]:
        return tuple(address(each) for each in (self.A, self.D, self.dt_bias, self.state))
