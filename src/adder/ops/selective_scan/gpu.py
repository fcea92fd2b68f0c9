"""The Triton kernels of the selective scan: which calls they serve, and how the tensors reach them.

Where the channels of a batch do not fill the chip, the length is cut into segments: a first kernel runs each from a
state of zero, and the programs of the second work out the state that each segment really starts from.
"""

import math

import torch
import triton
from torch import Tensor

from adder.ops.native import side_by_side
from adder.ops.selective_scan.gpu_backward import adjoint_ends_kernel, adjoint_kernel, sum_kernel
from adder.ops.selective_scan.gpu_forward import ends_kernel, forward_kernel, stage_kernel
from adder.ops.selective_scan.portable import CHUNK, Inputs

STORAGE = (torch.float32, torch.bfloat16, torch.float16)
LOG2E = math.log2(math.e)
# Steps of a block, whose rows are in registers, and warps of a program.
FORWARD = {"STEPS": 8, "WARPS": 4, "num_warps": 4, "maxnreg": 168}
BACKWARD = {"STEPS": 8, "WARPS": 4, "num_warps": 4}
STATES = 16  # of a channel that the forward pass holds in registers
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
    n = inputs.A.shape[1]
    states = min(triton.next_power_of_2(n), STATES)
    padded_n = triton.cdiv(n, states) * states
    call = _Call(inputs, FORWARD, padded_n, tile=1)
    options = {**call.options, "BLOCK": states, "ALL": n <= STATES}
    (b, l, d), chunks = inputs.u.shape, triton.cdiv(inputs.u.shape[1], CHUNK)
    ends = totals = None
    if call.segments > 1:
        ends, totals = (
            call.scratch(b, call.segments, padded_n, d),
            call.scratch(b, call.segments, d),
        )
        ends_kernel[(call.programs(call.segments - 1),)](
            call.u, call.delta, call.A2, call.BC, call.delta_bias, call.seq_idx, ends, totals,
            *call.strides(call.u, call.delta), *call.lengths(padded_n),
            **{**options, "EXACT": call.full},
        )  # fmt: skip
    y = torch.empty((b, l, d), dtype=inputs.u.dtype, device=inputs.u.device)
    last = call.scratch(b, d, n)
    saved = call.scratch(b, chunks, n, d) if save else None
    carry = call.scratch(b, call.segments, padded_n, d)
    forward_kernel[(call.programs(call.segments),)](
        call.u, call.delta, call.z, call.A2, call.BC, call.D, call.delta_bias, call.state,
        call.seq_idx, ends, totals, carry, y, last, saved,
        *call.strides(call.u, call.delta, call.z), *call.lengths(n, padded_n), chunks,
        CHUNK=CHUNK, **options,
    )  # fmt: skip
    return y, last, call.scratch(0) if saved is None else saved


def backward(inputs: Inputs, saved: Tensor, dy: Tensor, dlast: Tensor | None) -> list[Tensor]:
    """Return the gradients in the order of `portable.backward`."""
    (b, l, d), g, n = inputs.u.shape, inputs.B.shape[2], inputs.A.shape[1]
    steps = BACKWARD["STEPS"]
    call = _Call(inputs, BACKWARD, n, tile=steps)
    dy, saved = side_by_side(dy), saved.contiguous()
    dlast = None if dlast is None else dlast.contiguous()
    ends = totals = None
    if call.segments > 1:
        ends, totals = call.scratch(b, call.segments, n, d), call.scratch(b, call.segments, d)
        adjoint_ends_kernel[(call.programs(call.segments - 1),)](
            call.delta, dy, call.z, call.A2, call.BC, call.delta_bias, call.seq_idx, ends, totals,
            *call.strides(call.delta, dy, call.z), *call.lengths(n), **call.options,
        )  # fmt: skip
    du, ddelta = (torch.empty((b, l, d), dtype=dy.dtype, device=dy.device) for _ in range(2))
    dz = None if call.z is None else torch.empty_like(du)
    dB, dC = (torch.empty((b, l, g, n), dtype=dy.dtype, device=dy.device) for _ in range(2))
    dstate = None if call.state is None else call.scratch(b, d, n)
    dD, dbias = (call.scratch(b, call.segments, d) for _ in range(2))
    dA, carry = (call.scratch(b, call.segments, n, d) for _ in range(2))
    middle = call.scratch(b, call.segments, CHUNK // steps - 1, n, d)
    partial = call.scratch(b, g * call.blocks, call.tiles, n, 2, steps)
    adjoint_kernel[(call.programs(call.segments),)](
        call.u, call.delta, call.z, call.A2, call.BC, call.D, call.delta_bias, call.seq_idx,
        saved, dy, dlast, ends, totals, middle, carry, du, ddelta, dz, dstate, dA, partial, dD, dbias,
        *call.strides(call.u, call.delta, call.z, dy), *call.lengths(n), triton.cdiv(l, CHUNK),
        CHUNK=CHUNK, **call.options,
    )  # fmt: skip
    states = min(triton.next_power_of_2(n), 16)
    sum_kernel[(b * g * call.tiles, triton.cdiv(n, states))](
        partial, dB, dC, l, n, g, call.blocks, call.tiles, STEPS=steps, STATES=states
    )
    return [
        du,
        ddelta,
        dA.sum((0, 1)).t().contiguous(),
        dB,
        dC,
        call.scratch(0) if call.D is None else dD.sum((0, 1)),
        call.scratch(0) if dz is None else dz,
        call.scratch(0) if call.delta_bias is None else dbias.sum((0, 1)),
        call.scratch(0) if dstate is None else dstate,
    ]


class _Call:
    """The arguments that all kernels of a pass share. B and C are staged in tiles of `tile` steps."""

    def __init__(self, inputs: Inputs, layout: dict[str, int], padded_n: int, tile: int):
        (b, l, d), g, n = inputs.u.shape, inputs.B.shape[2], inputs.A.shape[1]
        self.sizes = (b, l, d, g, n)
        self.u, self.delta = side_by_side(inputs.u), side_by_side(inputs.delta)
        self.z = None if inputs.z is None else side_by_side(inputs.z)
        self.D, self.delta_bias, self.state, self.seq_idx = (
            None if each is None else each.contiguous()
            for each in (inputs.D, inputs.delta_bias, inputs.state, inputs.seq_idx)
        )
        channels = 32 * layout["WARPS"]  # of a program
        self.width = d // g
        self.full = self.width % channels == 0
        self.blocks = triton.cdiv(self.width, channels)
        chunks = triton.cdiv(l, CHUNK)
        each = triton.cdiv(chunks, max(1, ENOUGH // (b * g * triton.cdiv(self.width, 32))))
        self.segments, self.segment_steps = triton.cdiv(chunks, each), each * CHUNK
        exact = self.full and l % layout["STEPS"] == 0
        self.options = {"SOFTPLUS": inputs.delta_softplus, "EXACT": exact, **layout}

        self.tiles = chunks * CHUNK // tile
        self.A2 = self.scratch(padded_n, d)
        self.BC = self.scratch(b, g, self.tiles, padded_n, 2, tile)
        states = min(triton.next_power_of_2(padded_n), 64)
        stage_kernel[(b * g * chunks + triton.cdiv(d, CHUNK), triton.cdiv(padded_n, states))](
            inputs.A, inputs.B, inputs.C, self.A2, self.BC,
            *inputs.A.stride(), *inputs.B.stride(), *inputs.C.stride(),
            b, l, d, n, padded_n, g, chunks, STEPS=tile, CHUNK=CHUNK, STATES=states,
        )  # fmt: skip

    def scratch(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.u.device)

    def programs(self, segments: int) -> int:
        b, _, _, g, _ = self.sizes
        return b * segments * g * self.blocks

    def strides(self, *tensors: Tensor | None) -> tuple[int, ...]:
        """Of the batch and the length of each tensor."""
        return tuple(s for x in tensors for s in ((0, 0) if x is None else x.stride()[:2]))

    def lengths(self, *n: int) -> tuple[int, ...]:
        """Those of the kernels' whole numbers that are the same in all of them, `n` among them."""
        _, l, d, g, _ = self.sizes
        return (
            l, d, *n, self.width, g, self.blocks, self.segments, self.segment_steps, self.tiles
        )  # fmt: skip
