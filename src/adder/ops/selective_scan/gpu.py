"""The Triton kernels of the selective scan: which calls they serve, and how the tensors reach them.

Where the channels of a batch do not fill the chip, the length is cut into segments: a first kernel runs each from a
state of zero, and the programs of the second work out the state that each segment really starts from.
"""

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from adder.ops.native import outer_strides, side_by_side
from adder.ops.selective_scan.gpu_backward import adjoint_ends_kernel, adjoint_kernel, sum_kernel
from adder.ops.selective_scan.gpu_forward import ends_kernel, forward_kernel, stage_kernel
from adder.ops.selective_scan.portable import CHUNK, Inputs

STORAGE = (torch.float32, torch.bfloat16, torch.float16)
LOG2E = math.log2(math.e)
ENOUGH = 2048  # warps that fill the chip
WORTHWHILE = 4  # segments at least, where the length is cut: it makes every state twice


@dataclass(frozen=True)
class Layout:
    """How a kernel is laid out: steps of a block, warps of a program, lanes of a channel, registers of a thread.

    `resident` programs fit on a multiprocessor, and a round of them takes `round` (relative to other layouts of the
    kernel; both passes over 8 x 2048 x 4096 and 32 x 2048 x 1536 on an H100: benchmarks/notes/gpu_selective_scan.md).
    """

    lanes: int
    registers: int
    resident: int
    round: float
    warps: int = 4
    steps: int = 8

    @property
    def channels(self) -> int:
        """How many a program has."""
        return self.warps * 32 // self.lanes

    def constants(self) -> dict[str, int]:
        return {
            "LANES": self.lanes,
            "STEPS": self.steps,
            "WARPS": self.warps,
            "num_warps": self.warps,
            "maxnreg": self.registers,
        }


def forward_layouts(n: int) -> list[tuple[Layout, int]]:
    """What the forward pass may choose from, and the states that a lane then holds."""
    choices = []
    for most, registers, resident, time in ((8, 128, 4, 0.55), (16, 168, 3, 0.80)):
        block = max(2, min(triton.next_power_of_2(n), most))
        lanes = triton.next_power_of_2(triton.cdiv(n, block))
        choices.append((Layout(lanes, registers, resident, time), block))
    return choices


BACKWARD = [Layout(2, 168, 3, 2.4), Layout(2, 255, 2, 2.0)]


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
    layout, block = min(forward_layouts(n), key=lambda choice: _time(choice[0], inputs))
    padded_n = layout.lanes * block
    call = _Call(inputs, layout, padded_n, tile=1)
    options = {**call.options, "BLOCK": block}
    ends = totals = None
    if call.segments > 1:
        ends = call.scratch(b, call.segments, padded_n, d)
        totals = call.scratch(b, call.segments, d)
        ends_kernel[(call.programs(call.segments - 1),)](
            call.u, call.delta, call.A2, call.BC, call.delta_bias, call.seq_idx, ends, totals,
            *outer_strides(call.u, call.delta), *call.lengths(),
            **{**options, "EXACT": call.full},
        )  # fmt: skip
    y = torch.empty((b, l, d), dtype=inputs.u.dtype, device=inputs.u.device)
    last = call.scratch(b, n, d)
    saved = call.scratch(b, chunks, n, d) if save else None
    forward_kernel[(call.programs(call.segments),)](
        call.u, call.delta, call.z, call.A2, call.BC, call.D, call.delta_bias, call.state,
        call.seq_idx, ends, totals, y, last, saved,
        *outer_strides(call.u, call.delta, call.z), *call.lengths(), n, chunks,
        CHUNK=CHUNK, **options,
    )  # fmt: skip
    last = last.transpose(1, 2).contiguous()
    return y, last, call.scratch(0) if saved is None else saved


def backward(inputs: Inputs, saved: Tensor, dy: Tensor, dlast: Tensor | None) -> list[Tensor]:
    """Return the gradients in the order of `portable.backward`."""
    (b, l, d), g, n = inputs.u.shape, inputs.B.shape[2], inputs.A.shape[1]
    layout = min(BACKWARD, key=lambda choice: _time(choice, inputs))
    steps, padded_n = layout.steps, triton.cdiv(n, layout.lanes) * layout.lanes
    call = _Call(inputs, layout, padded_n, tile=steps)
    dy, saved = side_by_side(dy), saved.contiguous()
    dlast = None if dlast is None else dlast.contiguous()
    ends = totals = None
    if call.segments > 1:
        ends = call.scratch(b, call.segments, padded_n, d)
        totals = call.scratch(b, call.segments, d)
        adjoint_ends_kernel[(call.programs(call.segments - 1),)](
            call.delta, dy, call.z, call.A2, call.BC, call.delta_bias, call.seq_idx, ends, totals,
            *outer_strides(call.delta, dy, call.z), *call.lengths(), padded_n, **call.options,
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
        *outer_strides(call.u, call.delta, call.z, dy), *call.lengths(), padded_n, n, triton.cdiv(l, CHUNK),
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


def _programs(layout: Layout, inputs: Inputs) -> int:
    """How many there are, with the length in one piece."""
    b, _, d = inputs.u.shape
    groups = inputs.B.shape[2]
    return b * groups * triton.cdiv(d // groups, layout.channels)


def _time(layout: Layout, inputs: Inputs) -> float:
    """What a layout takes, relative to others: full rounds of resident programs, as the last one takes no less."""
    rounds = triton.cdiv(_programs(layout, inputs), layout.resident * _processors(inputs.u.device))
    return rounds * layout.round


def _processors(device: torch.device) -> int:
    if device.type != "cuda":  # in Triton's interpreter
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


class _Call:
    """The arguments that all kernels of a pass share. B and C are staged in tiles of `tile` steps."""

    def __init__(self, inputs: Inputs, layout: Layout, padded_n: int, tile: int):
        (b, l, d), g, n = inputs.u.shape, inputs.B.shape[2], inputs.A.shape[1]
        self.sizes = (b, l, d, g, n)
        self.u, self.delta = side_by_side(inputs.u), side_by_side(inputs.delta)
        self.z = None if inputs.z is None else side_by_side(inputs.z)
        self.D, self.delta_bias, self.state, self.seq_idx = (
            None if each is None else each.contiguous()
            for each in (inputs.D, inputs.delta_bias, inputs.state, inputs.seq_idx)
        )
        self.width = d // g
        self.full = self.width % layout.channels == 0
        self.blocks = triton.cdiv(self.width, layout.channels)
        chunks = triton.cdiv(l, CHUNK)
        cuts = ENOUGH // (_programs(layout, inputs) * layout.warps)
        cut = triton.cdiv(chunks, cuts if cuts >= WORTHWHILE else 1)
        self.segments, self.segment_steps = triton.cdiv(chunks, cut), cut * CHUNK
        exact = self.full and l % layout.steps == 0
        self.options = {"SOFTPLUS": inputs.delta_softplus, "EXACT": exact, **layout.constants()}
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

    def lengths(self) -> tuple[int, ...]:
        """The whole numbers that all kernels take."""
        _, l, d, g, _ = self.sizes
        return (
            l, d, self.width, g, self.blocks, self.segments, self.segment_steps, self.padded
        )  # fmt: skip
