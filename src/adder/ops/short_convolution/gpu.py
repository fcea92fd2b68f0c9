"""The Triton kernels of the short convolution: which calls they serve, and how the tensors reach them."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from adder.ops.native import side_by_side
from adder.ops.short_convolution.gpu_kernels import backward_kernel, forward_kernel, sum_kernel

STORAGE = (torch.float32, torch.bfloat16, torch.float16)
TAPS = 8  # at most: a row of each is in registers
ENOUGH = 4096  # warps that fill the chip
LONGEST, SHORTEST = 64, 32  # steps of a segment, about


@dataclass(frozen=True)
class Layout:
    """How many bytes a lane loads at once, and of how many steps together: rows in flight, against registers."""

    bytes: int
    rows: int

    def of(self, x: Tensor) -> dict[str, int]:
        """What a kernel is compiled with: as many warps in a program, up to four, as leave no lane idle."""
        d, each = x.shape[2], 32 * self.bytes // x.element_size()
        warps = next(warps for warps in (4, 2, 1) if d % (warps * each) == 0 or warps == 1)
        return {"CHANNELS": warps * each, "num_warps": warps, "ROWS": self.rows}


FORWARD = Layout(bytes=16, rows=4)
BACKWARD = Layout(bytes=8, rows=8)  # with 16 bytes it takes 240 registers: too few warps fit
MANY_TAPS = Layout(bytes=4, rows=4)  # of the backward pass with more than 4


def serves(x: Tensor, weight: Tensor) -> bool:
    """The kernels serve float32, bfloat16 and float16, up to 8 taps."""
    return x.dtype in STORAGE and weight.shape[1] <= TAPS


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    state: Tensor | None,
    seq_idx: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return y and the last inputs: weight (d k) and bias in float32, state in x's type."""
    (b, length, d), k = x.shape, weight.shape[1]
    x, weight = side_by_side(x), _columns(weight)
    y, last = _empty(x, b, length, d), _empty(x, b, k - 1, d)
    layout, steps = FORWARD.of(x), _steps(b, length, d)
    segments, blocks = triton.cdiv(length, steps), triton.cdiv(d, layout["CHANNELS"])
    forward_kernel[(b * segments * blocks,)](
        x, weight, *map(_packed, (bias, state, seq_idx)), y, last,
        *weight.stride(), *x.stride()[:2], length, d, segments, steps, blocks,
        SILU=activation == "silu", K=k, **layout,
    )  # fmt: skip
    return y, last


def backward(
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
    x, dy, weight = side_by_side(x), side_by_side(dy), _columns(weight)
    dx, dstate = _empty(x, b, length, d), _empty(x, b, k - 1, d)
    layout = (BACKWARD if k <= 4 else MANY_TAPS).of(x)
    steps = _steps(b, length, d) + k - 1  # the first k - 1 are a block of their own
    segments, blocks = triton.cdiv(length, steps), triton.cdiv(d, layout["CHANNELS"])
    parts = torch.empty((b * segments, k + 1, d), dtype=torch.float32, device=x.device)
    backward_kernel[(b * segments * blocks,)](
        x, weight, *map(_packed, (bias, state, seq_idx)), dy, dlast.contiguous(),
        dx, dstate, parts, *weight.stride(), *x.stride()[:2], *dy.stride()[:2], length, d, segments, steps, blocks,
        SILU=activation == "silu", K=k, **layout,
    )  # fmt: skip
    dweight = torch.empty((d, k), dtype=torch.float32, device=x.device)
    dbias = torch.empty(d, dtype=torch.float32, device=x.device)
    sum_kernel[(triton.cdiv(d, 128), k + 1)](
        parts, dweight, dbias, b * segments, d, K=k, PARTS=32, CHANNELS=128
    )
    return dx, dweight, dbias, dstate


def _steps(b: int, length: int, d: int) -> int:
    """Steps of a segment: many, as the inputs before it are read again, but not so many that the chip is not full."""
    steps = b * length * triton.cdiv(d, 256) // ENOUGH // 8 * 8
    return max(SHORTEST, min(steps, LONGEST))


def _columns(weight: Tensor) -> Tensor:
    """(d k), the channels side by side in memory: as they lie otherwise, each lane would read another line."""
    return weight.t().contiguous().t()


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _packed(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
