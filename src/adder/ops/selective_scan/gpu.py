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
# STEPS of a block, whose rows are in registers; WARPS of a program; LANES that share a channel.
FORWARD = {"STEPS": 8, "WARPS": 4, "num_warps": 4, "maxnreg": 128}
BACKWARD = {"STEPS": 8, "WARPS": 4, "num_warps": 4, "LANES": 2, "maxnreg": 128}
BLOCK = 8  # states of a lane in the forward pass, at most
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
    (b, l, d), n, chunks = inputs.u.shape, inputs.A.shape[1], triton.cdiv(inputs.u.shape[1], CHUNK)
    block = max(2, min(triton.next_power_of_2(n), BLOCK))
    lanes = triton.next_power_of_2(triton.cdiv(n, block))
    call = _Call(inputs, {**FORWARD, "LANES": lanes}, lanes * block, tile=1)
    options = {**call.options, "BLOCK": block}
    ends = totals = None
    if call.segments > 1:
        ends = call.scratch(b, call.segments, lanes * block, d)
        totals = call.scratch(b, call.segments, d)
        ends_kernel[(call.programs(call.segments - 1),)](
            call.u, call.delta, call.A2, call.BC, call.delta_bias, call.seq_idx, ends, totals,
            *call.strides(call.u, call.delta), *call.lengths(),
            **{**options, "EXACT": call.full},
        )  # fmt: skip
    y = torch.empty((b, l, d), dtype=inputs.u.dtype, device=inputs.u.device)
    last = call.scratch(b, d, n)
    saved = call.scratch(b, chunks, n, d) if save else None
    forward_kernel[(call.programs(call.segments),)](
        call.u, call.delta, call.z, call.A2, call.BC, call.D, call.delta_bias, call.state,
        call.seq_idx, ends, totals, y, last, saved,
        *call.strides(call.u, call.delta, call.z), *call.lengths(), n, chunks,
        CHUNK=CHUNK, **options,
    )  # fmt: skip
    return y, last, call.scratch(0) if saved is None else saved


def backward(inputs: Inputs, saved: Tensor, dy: Tensor, dlast: Tensor | None) -> list[Tensor]:
    """Return the gradients in the order of `portable.backward`."""
    (b, l, d), g, n = inputs.u.shape, inputs.B.shape[2], inputs.A.shape[1]
    steps = BACKWARD["STEPS"]
    padded_n = triton.cdiv(n, BACKWARD["LANES"]) * BACKWARD["LANES"]
    call = _Call(inputs, BACKWARD, padded_n, tile=steps)
    dy, saved = side_by_side(dy), saved.contiguous()
    dlast = None if dlast is None else dlast.contiguous()
    ends = totals = None
    if call.segments > 1:
        ends = call.scratch(b, call.segments, padded_n, d)
        totals = call.scratch(b, call.segments, d)
        adjoint_ends_kernel[(call.programs(call.segments - 1),)](
            call.delta, dy, call.z, call.A2, call.BC, call.delta_bias, call.seq_idx, ends, totals,
            *call.strides(call.delta, dy, call.z), *call.lengths(), padded_n, **call.options,
        )  # fmt: skip
    du, ddelta = (torch.empty((b, l, d), dtype=dy.dtype, device=dy.device) for _ in range(2))
    dz = None if call.z is None else torch.empty_like(du)
    dB, dC = (torch.empty((b, l, g, n), dtype=dy.dtype, device=dy.device) for _ in range(2))
    dstate = None if call.state is None else call.scratch(b, d, n)
    dD, dbias = (call.scratch(b, call.segments, d) for _ in range(2))
    dA, carry = (call.scratch(b, call.segments, padded_n, d) for _ in range(2))
    middle = call.scratch(b, call.segments, CHUNK // steps - 1, padded_n, d)
    partial = call.scratch(b, g * call.blocks, call.padded // steps, padded_n, 2, steps)
    adjoint_kernel[(call.programs(call.segments),)](
        call.u, call.delta, call.z, call.A2, call.BC, call.D, call.delta_bias, call.seq_idx,
        saved, dy, dlast, ends, totals, middle, carry, du, ddelta, dz, dstate, dA, partial, dD, dbias,
        *call.strides(call.u, call.delta, call.z, dy), *call.lengths(), padded_n, n, triton.cdiv(l, CHUNK),
        CHUNK=CHUNK, **call.options,
    )  # fmt: skip
    states = min(triton.next_power_of_2(n), 16)
    sum_kernel[(b * g * call.padded // steps, triton.cdiv(n, states))](
        partial,
        dB,
        dC,
        l,
        n,
        padded_n,
        g,
        call.blocks,
        call.padded // steps,
        STEPS=steps,
        STATES=states,
    )
    return [
        du,
        ddelta,
        dA.sum((0, 1))[:n].t().contiguous(),
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
        each = 32 // layout["LANES"]  # channels of a warp
        channels = each * layout["WARPS"]
        self.width = d // g
        self.full = self.width % channels == 0
        self.blocks = triton.cdiv(self.width, channels)
        chunks = triton.cdiv(l, CHUNK)
        warps = b * g * triton.cdiv(self.width, each)
        cut = triton.cdiv(chunks, max(1, ENOUGH // warps))
        self.segments, self.segment_steps = triton.cdiv(chunks, cut), cut * CHUNK
        exact = self.full and l % layout["STEPS"] == 0
        self.options = {"SOFTPLUS": inputs.delta_softplus, "EXACT": exact, **layout}

        self.padded = chunks * CHUNK
        self.A2 = self.scratch(padded_n, d)
        self.BC = self.scratch(b, g, self.padded // tile, padded_n, 2, tile)
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

    def lengths(self) -> tuple[int, ...]:
        """The whole numbers that all kernels take."""
        _, l, d, g, _ = self.sizes
        return (
            l, d, self.width, g, self.blocks, self.segments, self.segment_steps, self.padded
        )  # fmt: skip
