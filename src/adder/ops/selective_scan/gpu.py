"""The Triton kernels of the selective scan: which calls they serve, and how the tensors reach them.

Where the channels of a batch do not fill the chip, the length is cut into segments: a first kernel runs each from a
state of zero, and the programs of the second work out the state that each segment really starts from.
"""

import math
from typing import Any

import torch
import triton
from torch import Tensor

from adder.ops.native import side_by_side
from adder.ops.selective_scan.gpu_backward import adjoint_ends_kernel, adjoint_kernel, sum_kernel
from adder.ops.selective_scan.gpu_forward import ends_kernel, forward_kernel, transpose_kernel
from adder.ops.selective_scan.portable import CHUNK, Inputs

STORAGE = (torch.float32, torch.bfloat16, torch.float16)
LOG2E = math.log2(math.e)
# Steps of a block, whose rows are in registers, and warps of a program.
FORWARD = {"STEPS": 16, "WARPS": 1, "num_warps": 1}
BACKWARD = {"STEPS": 8, "WARPS": 4, "num_warps": 4}
ENOUGH = 1024  # warps that fill the chip; below it the length is cut


def serves(inputs: Inputs) -> bool:
    """The kernels serve real A with B and C that change over time by the same groups, in float32, bfloat16, float16."""
    B, C = inputs.B, inputs.C
    return (
        inputs.u.dtype in STORAGE
        and not inputs.A.is_complex()
        and B.ndim == C.ndim == 4
        and B.shape[2] == C.shape[2]
    )


def forward(inputs: Inputs, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the last state, and the state before each chunk, as `portable.forward` does."""
    call = _Call(inputs, FORWARD)
    b, l, d, _, n = call.sizes
    y = torch.empty((b, l, d), dtype=inputs.u.dtype, device=inputs.u.device)
    last = call.scratch(b, d, n)
    saved = call.scratch(b, -(-l // CHUNK), n, d) if save else None
    ends, totals = call.ends()
    carry = call.scratch(b, call.segments, n, d)
    forward_kernel[(call.programs,)](
        call.u,
        call.delta,
        call.z,
        call.A2,
        call.BT,
        call.CT,
        call.D,
        call.delta_bias,
        call.state,
        call.seq_idx,
        ends,
        totals,
        carry,
        y,
        last,
        saved,
        *call.strides(call.u, call.delta, call.z),
        *call.lengths(),
        -(-l // CHUNK),
        CHUNK=CHUNK,
        **call.options(),
    )
    return y, last, call.scratch(0) if saved is None else saved


def backward(inputs: Inputs, saved: Tensor, dy: Tensor, dlast: Tensor | None) -> list[Tensor]:
    """Return the gradients in the order of `portable.backward`."""
    call = _Call(inputs, BACKWARD)
    b, l, d, g, n = call.sizes
    dy = side_by_side(dy)
    dlast = None if dlast is None else dlast.contiguous()
    du, ddelta = (torch.empty(call.u.shape, dtype=dy.dtype, device=dy.device) for _ in range(2))
    dz = None if call.z is None else torch.empty_like(du)
    dstate = None if call.state is None else call.scratch(b, d, n)
    dD, dbias = (call.scratch(b, call.segments, d) for _ in range(2))
    dA, carry = (call.scratch(b, call.segments, n, d) for _ in range(2))
    partial = call.scratch(b, g * call.blocks, 2, n, call.padded)
    middle = call.scratch(b, call.segments, CHUNK // BACKWARD["STEPS"] - 1, n, d)
    ends, totals = call.adjoint_ends(dy)
    adjoint_kernel[(call.programs,)](
        call.u,
        call.delta,
        call.z,
        call.A2,
        call.BT,
        call.CT,
        call.D,
        call.delta_bias,
        call.seq_idx,
        saved.contiguous(),
        dy,
        dlast,
        ends,
        totals,
        middle,
        carry,
        du,
        ddelta,
        dz,
        dstate,
        dA,
        partial,
        dD,
        dbias,
        *call.strides(call.u, call.delta, call.z, dy),
        *call.lengths(),
        -(-l // CHUNK),
        CHUNK=CHUNK,
        **call.options(),
    )
    dB, dC = call.summed(partial, inputs.B.dtype)
    none = call.scratch(0)
    return [
        du,
        ddelta,
        dA.sum((0, 1)).t().contiguous(),
        dB,
        dC,
        none if call.D is None else dD.sum((0, 1)),
        none if dz is None else dz,
        none if call.delta_bias is None else dbias.sum((0, 1)),
        none if dstate is None else dstate,
    ]


class _Call:
    """The arguments that both passes hand over."""

    def __init__(self, inputs: Inputs, layout: dict[str, int]):
        (b, l, d), g, n = inputs.u.shape, inputs.B.shape[2], inputs.A.shape[1]
        self.sizes = (b, l, d, g, n)
        self.layout, self.softplus = layout, inputs.delta_softplus
        self.channels = 32 * layout["WARPS"]  # of a program
        self.u, self.delta = side_by_side(inputs.u), side_by_side(inputs.delta)
        self.z = None if inputs.z is None else side_by_side(inputs.z)
        self.A2 = (inputs.A.t() * LOG2E).contiguous()
        self.D, self.delta_bias, self.state, self.seq_idx = (
            None if each is None else each.contiguous()
            for each in (inputs.D, inputs.delta_bias, inputs.state, inputs.seq_idx)
        )
        self.width = d // g
        self.blocks = triton.cdiv(self.width, self.channels)
        chunks = triton.cdiv(l, CHUNK)
        self.padded = chunks * CHUNK
        busy = b * g * triton.cdiv(self.width, 32)
        each = triton.cdiv(chunks, max(1, ENOUGH // busy))
        self.segments, self.segment_steps = triton.cdiv(chunks, each), each * CHUNK
        self.programs = b * self.segments * g * self.blocks
        self.BT, self.CT = self._transposed(inputs.B, inputs.C)

    def scratch(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.u.device)

    def _transposed(self, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        b, l, _, g, n = self.sizes
        BT, CT = self.scratch(b, g, n, self.padded), self.scratch(b, g, n, self.padded)
        states = min(triton.next_power_of_2(n), 64)
        tiles = triton.cdiv(self.padded, 64)
        transpose_kernel[(b * g * tiles, triton.cdiv(n, states))](
            B, C, BT, CT, *B.stride(), *C.stride(), l, self.padded, n, g, tiles, STEPS=64, STATES=states
        )  # fmt: skip
        return BT, CT

    def ends(self) -> tuple[Tensor | None, Tensor | None]:
        """The state at the end of each segment that starts from zero, and the sum of its steps."""
        if self.segments == 1:
            return None, None
        b, _, d, _, n = self.sizes
        ends, totals = self.scratch(b, self.segments, n, d), self.scratch(b, self.segments, d)
        ends_kernel[(self.programs // self.segments * (self.segments - 1),)](
            self.u,
            self.delta,
            self.A2,
            self.BT,
            self.delta_bias,
            self.seq_idx,
            ends,
            totals,
            *self.strides(self.u, self.delta),
            *self.lengths(),
            **self.options(exact=self._full),
        )
        return ends, totals

    def adjoint_ends(self, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What reaches the state before each segment from zero after its end, and the sum of its steps."""
        if self.segments == 1:
            return None, None
        b, _, d, _, n = self.sizes
        ends, totals = self.scratch(b, self.segments, n, d), self.scratch(b, self.segments, d)
        adjoint_ends_kernel[(self.programs // self.segments * (self.segments - 1),)](
            self.delta,
            dy,
            self.z,
            self.A2,
            self.CT,
            self.delta_bias,
            self.seq_idx,
            ends,
            totals,
            *self.strides(self.delta, dy, self.z),
            *self.lengths(),
            **self.options(),
        )
        return ends, totals

    def summed(self, partial: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """dB and dC from their sums over each block of channels."""
        b, l, _, g, n = self.sizes
        dB, dC = (torch.empty((b, l, g, n), dtype=dtype, device=partial.device) for _ in range(2))
        states, tiles = min(triton.next_power_of_2(n), 16), triton.cdiv(l, 64)
        sum_kernel[(b * g * tiles, triton.cdiv(n, states))](
            partial, dB, dC, l, self.padded, n, g, self.blocks, tiles, STEPS=64, STATES=states
        )
        return dB, dC

    def strides(self, *tensors: Tensor | None) -> tuple[int, ...]:
        """Of the batch and the length of each tensor."""
        return tuple(s for x in tensors for s in ((0, 0) if x is None else x.stride()[:2]))

    def lengths(self) -> tuple[int, ...]:
        _, l, d, g, n = self.sizes
        return (
            l, self.padded, d, n, self.width, g, self.blocks, self.segments, self.segment_steps
        )  # fmt: skip

    @property
    def _full(self) -> bool:
        return self.width % self.channels == 0

    def options(self, exact: bool | None = None) -> dict[str, Any]:
        """`exact`: every channel and step that a block has exists."""
        if exact is None:
            exact = self._full and self.sizes[1] % self.layout["STEPS"] == 0
        return {"SOFTPLUS": self.softplus, "EXACT": exact, **self.layout}
