"""The Triton kernels of state space duality: how the tensors reach them.

All chunks are worked on at once, but for the states that go from one to the next. Sums are taken in a fixed order.
"""

import torch
import triton
from torch import Tensor

from adder.ops.native import side_by_side
from adder.ops.state_space_dual.gpu_forward import (
    output_kernel,
    pass_kernel,
    states_kernel,
    steps_kernel,
)
from adder.ops.state_space_dual.gpu_serves import CHUNK
from adder.ops.state_space_dual.portable import Inputs

# How a product takes its operands: bfloat16 as it is, float16 as three TF32 products, float32 by multiply-adds.
PRECISION = {torch.bfloat16: "bf16", torch.float16: "tf32x3", torch.float32: "ieee"}
ROWS = 64  # steps of a tile
AHEAD = 8  # chunks whose states are read before they are needed
BLOCK = 512  # states of a program that passes them on


def forward(inputs: Inputs, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the last state, and the state before each chunk of CHUNK steps (b chunks h n p)."""
    call = Call(inputs, slopes=False)
    states = call.states(call.x, None, call.B, adjoint=False)
    last = call.scratch(call.b, call.h, call.p, call.n)
    call.pass_on(states, call.state, last, reverse=False)
    y = torch.empty(inputs.x.shape, dtype=inputs.x.dtype, device=inputs.x.device)
    call.outputs(states, None, y)
    return y, last, states if save else call.scratch(0)


class Call:
    """The arguments that the kernels of a pass share."""

    def __init__(self, inputs: Inputs, *, slopes: bool):
        (self.b, self.l, self.h, self.p), (self.g, self.n) = inputs.x.shape, inputs.B.shape[2:]
        self.chunks = triton.cdiv(self.l, CHUNK)
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

    def scratch(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.x.device)

    def decays(self) -> tuple[Tensor | None, ...]:
        return self.steps, self.sums, self.rests, self.number

    def sizes(self) -> tuple[int, ...]:
        return self.l, self.h, self.chunks, self.h // self.g, self.p, self.n

    def states(self, x: Tensor, z: Tensor | None, B: Tensor, *, adjoint: bool) -> Tensor:
        """What each chunk adds to the state, or to its gradient."""
        states = self.scratch(self.b, self.chunks, self.h, self.n, self.p)
        block = min(self.padded_n, 64 if self.padded_p > 64 else 128)
        states_kernel[(self.programs, triton.cdiv(self.n, block))](
            x, z, B, *self.decays(), states, *strides(x, z, B), *self.sizes(),
            ADJOINT=adjoint, K=ROWS, N=block, **self.tile,
        )  # fmt: skip
        return states

    def pass_on(
        self, states: Tensor, initial: Tensor | None, final: Tensor | None, *, reverse: bool
    ) -> None:
        pass_kernel[(self.b * self.h, triton.cdiv(self.n * self.p, BLOCK))](
            states, self.sums, self.rests, self.number, initial, final,
            self.h, self.chunks, self.p, self.n, REVERSE=reverse, T=CHUNK, AHEAD=AHEAD, BLOCK=BLOCK,
        )  # fmt: skip

    def outputs(self, states: Tensor, dy: Tensor | None, out: Tensor) -> None:
        """y, or with dy the gradient of z."""
        output_kernel[(self.programs, CHUNK // ROWS)](
            self.x, self.z, self.B, self.C, self.D, dy, *self.decays(), states, out,
            *strides(self.x, self.z, self.B, self.C, dy), *self.sizes(),
            M=ROWS, N=min(self.padded_n, 128), **self.wide, **self.tile,
        )  # fmt: skip


def strides(*tensors: Tensor | None) -> tuple[int, ...]:
    """Of the batch and the length of each tensor."""
    return tuple(s for x in tensors for s in ((0, 0) if x is None else x.stride()[:2]))
