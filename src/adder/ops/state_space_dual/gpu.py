"""The Triton kernels of state space duality: how the tensors reach them.

All chunks are worked on at once, but for the states that go from one to the next. Sums are taken in a fixed order.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from adder.ops.native import outer_strides, side_by_side
from adder.ops.state_space_dual.gpu_backward import (
    edges_kernel,
    finish_kernel,
    gather_kernel,
    input_kernel,
    pairs_kernel,
    projection_kernel,
)
from adder.ops.state_space_dual.gpu_forward import (
    output_kernel,
    pass_kernel,
    scores_kernel,
    states_kernel,
    steps_kernel,
)
from adder.ops.state_space_dual.gpu_serves import CHUNK
from adder.ops.state_space_dual.portable import Inputs

# How products are made: of bfloat16, or each as six of it, which keeps 24 bits.
PRECISION = {torch.bfloat16: "bf16", torch.float16: "bf16x6", torch.float32: "bf16x6"}
SHARE = 16  # heads that a program sums dB and dC over, at most
AHEAD = 8  # chunks whose states are read before they are needed
BLOCK = 512  # states of a program that passes them on

# Four warps: Triton 3.6 lets one group of four overwrite what another's product still reads (triton-lang/triton#11047).
# Of each kernel: rows M and columns K of a tile of steps, states of a block, warps and so on; for bfloat16 heads of up
# to 64 channels, and for all others.
LAYOUTS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "scores": (
        {"M": 64, "N": 128, "num_warps": 4},
        {"M": 64, "N": 32, "num_warps": 4, "num_stages": 1},
    ),
    "states": (
        {"K": 32, "N": 128, "num_warps": 4, "num_stages": 3},
        {"K": 32, "N": 64, "num_warps": 4, "num_stages": 1},
    ),
    "output": (
        {"M": 64, "K": 64, "N": 64, "num_warps": 4, "num_stages": 2, "maxnreg": 128},
        {"M": 64, "K": 32, "N": 32, "num_warps": 4, "num_stages": 1},
    ),
    "edges": (
        {"M": 64, "N": 32, "num_warps": 4, "num_stages": 2, "maxnreg": 168},
        {"M": 64, "N": 32, "num_warps": 4, "num_stages": 1},
    ),
    "input": (
        {"M": 64, "K": 32, "N": 64, "num_warps": 4, "num_stages": 2, "maxnreg": 168},
        {"M": 64, "K": 32, "N": 32, "num_warps": 4, "num_stages": 1},
    ),
    "pairs": (
        {"M": 64, "num_warps": 4, "num_stages": 3, "maxnreg": 128},
        {"M": 64, "num_warps": 4, "num_stages": 1},
    ),
    "projection": (
        {"M": 64, "K": 64, "N": 128, "num_warps": 4, "num_stages": 3, "maxnreg": 168},
        {"M": 64, "K": 32, "N": 32, "num_warps": 4, "num_stages": 1},
    ),
}


def forward(inputs: Inputs, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the last state, and the state before each chunk of CHUNK steps (b chunks h n p)."""
    call = Call(inputs, slopes=False)
    states = call.states(call.x, None, call.B, adjoint=False)
    last = call.scratch(call.b, call.h, call.p, call.n)
    call.pass_on(states, call.state, last, reverse=False)
    y = torch.empty(inputs.x.shape, dtype=inputs.x.dtype, device=inputs.x.device)
    call.outputs(states, None, y)
    return y, last, states if save else call.scratch(0)


def backward(inputs: Inputs, saved: Tensor, dy: Tensor, dlast: Tensor | None) -> list[Tensor]:
    """Return the gradients in the order of `portable.backward`."""
    call = Call(inputs, slopes=True)
    b, l, h, p = inputs.x.shape
    dy, saved = side_by_side(dy, 2), saved.contiguous()
    dlast = None if dlast is None else dlast.contiguous()
    dstate = None if call.state is None else call.scratch(b, h, p, call.n)
    after = call.states(dy, call.z, call.C, adjoint=True)
    call.pass_on(after, dlast, dstate, reverse=True)
    dx, ddt = (
        torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in (call.x, call.dt)
    )
    dz = None
    if call.z is not None:
        dz = torch.empty_like(dx)
        call.outputs(saved, dy, dz)
    leaves, enters, dx_x, spans = (torch.empty_like(call.steps) for _ in range(4))
    whole = call.scratch(b, h, call.chunks)
    layout = call.layout("edges")
    tiles = CHUNK // layout["M"]
    dD = call.scratch(b, call.chunks, tiles, h, p)
    edges_kernel[(call.programs * tiles,)](
        call.x, call.z, call.B, call.C, dy, *call.decays()[1:], saved, after, leaves, enters, whole, dD,
        *outer_strides(call.x, call.z, call.B, call.C, dy), *call.sizes(), **call.tile, **layout,
    )  # fmt: skip
    layout = call.layout("input")
    tiles = CHUNK // layout["M"]
    columns = call.scratch(b, h, call.chunks, tiles, CHUNK)
    scores = call.scores(call.B, call.C, upper=True)
    call.twice(
        input_kernel, call.programs * tiles,
        (call.x, call.z, call.B, call.D, dy, scores, *call.decays(), after, leaves, dx, dx_x, spans, columns),
        (*outer_strides(call.x, call.z, call.B, dy), *call.sizes()),
        **call.wide, **call.tile, **layout,
    )  # fmt: skip
    dA, dbias = (call.scratch(b, call.chunks, h) for _ in range(2))
    finish_kernel[(call.programs,)](
        spans, columns, enters, whole, dx_x, call.slopes, call.steps, call.A, ddt, dA, dbias,
        l, h, call.chunks, T=CHUNK, M=layout["M"],
    )  # fmt: skip
    pairs = call.pairs(dy)
    dB = call.projection(call.C, dy, pairs, after, of_c=False)
    dC = call.projection(call.B, dy, pairs, saved, of_c=True)
    skip = dD.sum((0, 1, 2))
    return [
        dx,
        ddt,
        dA.sum((0, 1)),
        dB,
        dC,
        call.scratch(0) if call.D is None else skip if call.D.ndim == 2 else skip.sum(-1),
        call.scratch(0) if dz is None else dz,
        call.scratch(0) if call.dt_bias is None else dbias.sum((0, 1)),
        call.scratch(0) if dstate is None else dstate,
    ]


class Call:
    """The arguments that the kernels of a pass share."""

    def __init__(self, inputs: Inputs, *, slopes: bool):
        (self.b, self.l, self.h, self.p), (self.g, self.n) = inputs.x.shape, inputs.B.shape[2:]
        self.chunks = triton.cdiv(self.l, CHUNK)
        self.blocks = triton.cdiv(self.h // self.g, SHARE)
        self.share = triton.cdiv(self.h // self.g, self.blocks)
        self.x, self.dt = side_by_side(inputs.x, 2), side_by_side(inputs.dt)
        self.B, self.C = side_by_side(inputs.B, 2), side_by_side(inputs.C, 2)
        self.z = None if inputs.z is None else side_by_side(inputs.z, 2)
        self.A, self.D, self.dt_bias, self.state, self.seq_idx = (
            None if each is None else each.contiguous()
            for each in (inputs.A, inputs.D, inputs.dt_bias, inputs.state, inputs.seq_idx)
        )
        by_channel = self.D is not None and self.D.ndim == 2
        self.padded_p, self.padded_n = (
            max(16, triton.next_power_of_2(size)) for size in (self.p, self.n)
        )
        self.wide = {"BY_CHANNEL": by_channel}
        self.tile = {"PRECISION": PRECISION[inputs.x.dtype], "T": CHUNK, "P": self.padded_p}
        self.steps, self.sums, self.rests = (
            self.scratch(self.b, self.h, self.chunks * CHUNK) for _ in range(3)
        )
        self.slopes = torch.empty_like(self.steps) if slopes else None
        self.number = None
        if self.seq_idx is not None:
            self.number = torch.empty(
                (self.b, self.chunks * CHUNK), dtype=torch.int32, device=self.x.device
            )
        self.programs = self.b * self.chunks * self.h
        steps_kernel[(self.programs,)](
            self.dt, self.A, self.dt_bias, self.seq_idx, *self.decays(), self.slopes,
            *self.dt.stride()[:2], self.l, self.h, self.chunks, inputs.dt_min, inputs.dt_max,
            SOFTPLUS=inputs.dt_softplus, T=CHUNK,
        )  # fmt: skip

    def scratch(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.x.device)

    def layout(self, kernel: str) -> dict[str, int]:
        others = self.padded_p > 64 or self.x.dtype != torch.bfloat16
        layout = LAYOUTS[kernel][others]
        return {**layout, "N": min(layout["N"], self.padded_n)} if "N" in layout else layout

    def decays(self) -> tuple[Tensor | None, ...]:
        return self.steps, self.sums, self.rests, self.number

    def sizes(self) -> tuple[int, ...]:
        return self.l, self.h, self.chunks, self.h // self.g, self.p, self.n

    def states(self, x: Tensor, z: Tensor | None, B: Tensor, *, adjoint: bool) -> Tensor:
        """What each chunk adds to the state, or to its gradient."""
        states = self.scratch(self.b, self.chunks, self.h, self.n, self.p)
        layout = self.layout("states")
        states_kernel[(self.programs, triton.cdiv(self.n, layout["N"]))](
            x, z, B, *self.decays(), states, *outer_strides(x, z, B), *self.sizes(),
            ADJOINT=adjoint, **self.tile, **layout,
        )  # fmt: skip
        return states

    def pass_on(
        self, states: Tensor, initial: Tensor | None, final: Tensor | None, *, reverse: bool
    ) -> None:
        pass_kernel[(self.b * self.h, triton.cdiv(self.n * self.p, BLOCK))](
            states, self.sums, self.rests, self.number, initial, final,
            self.h, self.chunks, self.p, self.n, REVERSE=reverse, T=CHUNK, AHEAD=AHEAD, BLOCK=BLOCK,
        )  # fmt: skip

    def twice(
        self,
        kernel: Any,
        programs: int,
        tensors: tuple[Any, ...],
        sizes: tuple[int, ...],
        **options: Any,
    ) -> None:
        """Run a kernel, and again those of its programs that have met numbers that are not finite.

        What that takes would hold twice the registers in the kernel itself.
        """
        marks = self.scratch(programs, dtype=torch.int32)
        for careful, grid in ((False, programs), (True, triton.cdiv(programs, 64))):
            kernel[(grid,)](*tensors, marks, *sizes, programs, CAREFUL=careful, **options)

    def scores(self, a: Tensor, b: Tensor, *, upper: bool) -> Tensor:
        """Products of the rows of a chunk in one with those in the other (b chunks g T T), on one side of the diagonal.

        Above it, where the gradients that are float32 come from, they are float32.
        """
        rounded = self.x.dtype if self.x.dtype == torch.bfloat16 and not upper else torch.float32
        scores = self.scratch(self.b, self.chunks, self.g, CHUNK, CHUNK, dtype=rounded)
        layout = self.layout("scores")
        tiles = CHUNK // layout["M"]
        scores_kernel[(self.b * self.chunks * self.g * tiles, tiles)](
            a, b, scores, *outer_strides(a, b), self.l, self.g, self.chunks, self.n,
            UPPER=upper, PRECISION=self.tile["PRECISION"], T=CHUNK, **layout,
        )  # fmt: skip
        return scores

    def outputs(self, states: Tensor, dy: Tensor | None, out: Tensor) -> None:
        """y, or with dy the gradient of z."""
        layout = self.layout("output")
        scores = self.scores(self.C, self.B, upper=False)
        self.twice(
            output_kernel, self.programs * (CHUNK // layout["M"]),
            (self.x, self.z, self.C, self.D, dy, scores, *self.decays(), states, out),
            (*outer_strides(self.x, self.z, self.C, dy), *self.sizes()), **self.wide, **self.tile, **layout,
        )  # fmt: skip

    def pairs(self, dy: Tensor) -> Tensor:
        """What the heads of a block give to the gradients of B[s] . C[t]: (b chunks g blocks T T)."""
        rounded = self.x.dtype if self.x.dtype == torch.bfloat16 else torch.float32
        blocks, layout = self.blocks, self.layout("pairs")
        pairs = self.scratch(self.b, self.chunks, self.g, blocks, CHUNK, CHUNK, dtype=rounded)
        tiles = CHUNK // layout["M"]
        pairs_kernel[(self.b * self.chunks * self.g * blocks * tiles, tiles)](
            self.x, self.z, dy, *self.decays(), pairs, *outer_strides(self.x, self.z, dy), *self.sizes()[:5],
            blocks, self.share, **self.tile, **layout,
        )  # fmt: skip
        return pairs

    def projection(
        self, partner: Tensor, dy: Tensor, pairs: Tensor, states: Tensor, *, of_c: bool
    ) -> Tensor:
        """The gradient of C or of B; the partner is the other one."""
        blocks, layout = self.blocks, self.layout("projection")
        parts = self.scratch(self.b, self.g, blocks, self.l, self.n)
        programs = self.b * self.chunks * self.g * blocks * (CHUNK // layout["M"])
        self.twice(
            projection_kernel, programs * triton.cdiv(self.n, layout["N"]),
            (self.x, self.z, partner, dy, pairs, *self.decays(), states, parts),
            (*outer_strides(self.x, self.z, partner, dy), *self.sizes(), blocks, self.share),
            OF_C=of_c, **self.tile, **layout,
        )  # fmt: skip
        out = torch.empty(
            (self.b, self.l, self.g, self.n), dtype=self.x.dtype, device=self.x.device
        )
        # One axis: the others end at 65,535.
        size = self.l * self.n
        grid = (self.b * self.g * triton.cdiv(size, BLOCK),)
        gather_kernel[grid](parts, out, self.l, size, self.g, blocks, self.n, BLOCK=BLOCK)
        return out
