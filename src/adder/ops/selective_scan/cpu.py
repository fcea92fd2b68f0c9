"""The C++ kernels of the selective scan: which calls they serve, and how the tensors reach them."""

from typing import Any

import torch
from torch import Tensor

from adder.ops.dtypes import arithmetic
from adder.ops.native import STORAGE, address, rows, side_by_side, threads
from adder.ops.selective_scan.portable import CHUNK, Inputs


def serves(inputs: Inputs) -> bool:
    """The kernels serve real A with B and C that change over time by the same groups, in float32, float64, bfloat16."""
    B, C = inputs.B, inputs.C
    return (
        inputs.u.dtype in STORAGE
        and not inputs.A.is_complex()
        and B.ndim == C.ndim == 4
        and B.shape[2] == C.shape[2]
    )


def forward(native: Any, inputs: Inputs, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the last state, and the state before each chunk, as `portable.forward` does."""
    call = _Call(inputs)
    b, l, d, _, n = call.sizes
    y = torch.empty(inputs.u.shape, dtype=inputs.u.dtype)
    last = torch.empty(b, d, n, dtype=call.real)
    saved = torch.empty((b, -(-l // CHUNK), n, d) if save else 0, dtype=call.real)
    native.selective_scan(
        *call.head(), call.inputs(), call.parameters(), rows(y), address(last), address(saved)
    )
    return y, last, saved


def backward(
    native: Any, inputs: Inputs, saved: Tensor, dy: Tensor, dlast: Tensor | None
) -> list[Tensor]:
    """Return the gradients in the order of `portable.backward`."""
    call = _Call(inputs)
    b, l, d, g, n = call.sizes
    dy, saved = side_by_side(dy), saved.contiguous()
    dlast = None if dlast is None else dlast.contiguous()
    du, ddelta, dB, dC = (
        torch.empty(each.shape, dtype=each.dtype)
        for each in (inputs.u, inputs.delta, inputs.B, inputs.C)
    )
    dz = (
        torch.empty(0, dtype=call.real)
        if inputs.z is None
        else torch.empty(dy.shape, dtype=dy.dtype)
    )
    dA, dD, dbias, dstate = (
        torch.empty(size if given is not None else 0, dtype=call.real)
        for given, size in (
            (inputs.A, (d, n)),
            (inputs.D, (d,)),
            (inputs.delta_bias, (d,)),
            (inputs.state, (b, d, n)),
        )
    )
    parts = native.selective_scan_parts(STORAGE[inputs.u.dtype], d, g)
    partial = [
        torch.empty(size, dtype=call.real)
        for size in ((b, d, n), (b, d), (b, d), (b, parts, l, n), (b, parts, l, n))
    ]
    native.selective_scan_backward(
        *call.head(),
        call.inputs(),
        call.parameters(),
        address(saved),
        rows(dy),
        address(dlast),
        tuple(rows(each if each.numel() else None) for each in (du, ddelta, dB, dC, dz)),
        tuple(each.data_ptr() for each in (dA, dD, dbias, dstate)),
        tuple(each.data_ptr() for each in partial),
    )
    return [du, ddelta, dA, dB, dC, dD, dz, dbias, dstate]


class _Call:
    """The arguments that both passes hand over. It keeps the tensors behind the addresses alive."""

    def __init__(self, inputs: Inputs):
        (b, l, d), n = inputs.u.shape, inputs.A.shape[1]
        self.real = arithmetic(inputs.u.dtype)
        self.sizes = (b, l, d, inputs.B.shape[2], n)
        self.storage = STORAGE[inputs.u.dtype]
        self.softplus = inputs.delta_softplus
        self.u, self.delta = side_by_side(inputs.u), side_by_side(inputs.delta)
        self.B, self.C = side_by_side(inputs.B, 2), side_by_side(inputs.C, 2)
        self.z = None if inputs.z is None else side_by_side(inputs.z)
        self.A, self.D, self.delta_bias, self.state, self.seq_idx = (
            None if each is None else each.contiguous()
            for each in (inputs.A, inputs.D, inputs.delta_bias, inputs.state, inputs.seq_idx)
        )

    def head(self) -> tuple[Any, ...]:
        return (self.storage, threads(), self.sizes, CHUNK, self.softplus, address(self.seq_idx))

    def inputs(self) -> tuple[Any, ...]:
        return tuple(rows(each) for each in (self.u, self.delta, self.B, self.C, self.z))

    def parameters(self) -> tuple[int, ...]:
        return tuple(address(each) for each in (self.A, self.D, self.delta_bias, self.state))
