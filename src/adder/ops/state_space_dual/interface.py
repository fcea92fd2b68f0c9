"""State space duality (SSD): the public function, and the operators under it that PyTorch dispatches by device."""

import math
import numbers
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from adder.ops import native
from adder.ops.checks import (
    expect,
    expect_floating,
    expect_packing,
    parameter_dtypes,
    refuse_forward_mode,
    sizes_of,
)
from adder.ops.dtypes import arithmetic
from adder.ops.state_space_dual import cpu, gpu_serves, portable
from adder.ops.state_space_dual.portable import Inputs

NAME = "state_space_dual"
CHUNK = 128
HAS_TRITON = find_spec("triton") is not None


def state_space_dual(
    x: Float[Tensor, "b l h p"],
    dt: Float[Tensor, "b l h"],
    A: Float[Tensor, " h"],
    B: Float[Tensor, "b l g n"],
    C: Float[Tensor, "b l g n"],
    D: Float[Tensor, " h"] | Float[Tensor, "h p"] | None = None,
    *,
    z: Float[Tensor, "b l h p"] | None = None,
    dt_bias: Float[Tensor, " h"] | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    chunk_size: int = CHUNK,
    state: Float[Tensor, "b h p n"] | None = None,
    seq_idx: Int32[Tensor, "b l"] | None = None,
) -> tuple[Float[Tensor, "b l h p"], Float[Tensor, "b h p n"]]:
    r"""Run a state space model whose decay is one number for each head and step, as matrix products over chunks.

        dt[t] = clamp(softplus(dt[t] + dt_bias), *dt_limit)         (softplus where dt_softplus)
        h[t]  = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t]^T
        y[t]  = (h[t] C[t] + D x[t]) * silu(z[t])                   (the gate where z is given)

    Mamba-2 (Dao & Gu 2024, arXiv:2405.21060), section 6 and listing 1.

    Axes: b batch, l length, h heads, p channels of a head, n state size, g groups of heads that share B and C.

    Args:
        x: the input.
        dt: the step size, before its bias, softplus and limits.
        A: the continuous-time decay of each head, negative for a stable model.
        B, C: input and output projections; g divides h, and a group is h / g heads that follow one another.
        D: the skip connection, of a head (h) or of each of its channels (h p).
        z: the gate.
        dt_bias: added to dt before the softplus.
        dt_limit: the least and the largest step size; by default steps below zero are zero.
        chunk_size: how many steps are multiplied at once; it changes time and memory, and of the numbers no more than
            their rounding. The kernels on a GPU choose it for themselves.
        state: h[-1], (b h p n). None means zero.
        seq_idx: packed sequences, non-decreasing along the length: the state restarts at zero where it changes.
            `state` belongs to the first sequence of each row, the returned state to the last.

    Returns:
        y and h[l-1]. Pass the second as `state` to continue: a call on a whole sequence and two calls on its
        parts agree. Both results carry gradients.

    Raises:
        ValueError: a shape or device disagrees, an axis is empty, g does not divide h, dt_limit or chunk_size is out of
            range, seq_idx goes backwards.
        TypeError: a dtype is not the one asked for; the message names the argument.

    Numbers: x, dt, B, C, z share one dtype, float32, float64, bfloat16 or float16, which y has as well. A, D,
    dt_bias and the state are float32 (float64 for float64 input), and so is the arithmetic, also under autocast.
    Cost: for each head and step, with chunks of t steps: 2 p n multiply-adds for the states, t p (and t n for each
    group) inside the chunk, t exponentials. Nothing of size (b, l, h, p, n) is stored; for the backward pass the
    state before every chunk is kept and the rest is computed again.

    Example:
        >>> b, l, h, p, g, n = 2, 5, 4, 3, 2, 8
        >>> y, state = state_space_dual(torch.ones(b, l, h, p), torch.ones(b, l, h), -torch.ones(h),
        ...                             torch.ones(b, l, g, n), torch.ones(b, l, g, n), torch.zeros(h))
        >>> y.shape, state.shape
        (torch.Size([2, 5, 4, 3]), torch.Size([2, 4, 3, 8]))
    """
    sizes = sizes_of(NAME, "x", x, "b l h p")
    expect_floating(NAME, "x", x)
    real, parameter = arithmetic(x.dtype), parameter_dtypes(x.dtype)
    expect(NAME, "dt", dt, "b l h", sizes, x, (x.dtype,))
    expect(NAME, "A", A, "h", sizes, x, parameter)
    projection = sizes_of(NAME, "B", B, "b l g n")
    sizes |= {"g": projection["g"], "n": projection["n"]}
    if sizes["h"] % sizes["g"]:
        raise ValueError(
            f"{NAME}: B has shape {tuple(B.shape)}: its {sizes['g']} groups do not divide {sizes['h']} heads"
        )
    expect(NAME, "B", B, "b l g n", sizes, x, (x.dtype,))
    expect(NAME, "C", C, "b l g n", sizes, x, (x.dtype,))
    per_channel = isinstance(D, Tensor) and D.ndim == 2
    expect(NAME, "D", D, "h p" if per_channel else "h", sizes, x, parameter)
    expect(NAME, "z", z, "b l h p", sizes, x, (x.dtype,))
    expect(NAME, "dt_bias", dt_bias, "h", sizes, x, parameter)
    low, high = _limits(dt_limit)
    _expect_chunk_size(chunk_size)
    expect(NAME, "state", state, "b h p n", sizes, x, (real,))
    expect_packing(NAME, seq_idx, sizes, x)
    A = A.to(real)
    D, dt_bias = (None if each is None else each.to(real) for each in (D, dt_bias))
    differentiable = (x, dt, A, B, C, D, z, dt_bias, state)
    refuse_forward_mode(NAME, *differentiable)
    save = torch.is_grad_enabled() and any(
        each is not None and each.requires_grad for each in differentiable
    )
    y, last, _ = _state_space_dual(
        x, dt, A, B, C, D, z, dt_bias, dt_softplus, low, high, chunk_size, state, seq_idx, save
    )
    return y, last


def _limits(limit: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(limit, tuple | list) or len(limit) != 2:
        raise ValueError(f"{NAME}: dt_limit is {limit!r}, expected the least and the largest step")
    for each in limit:
        if isinstance(each, bool) or not isinstance(each, numbers.Real):
            raise TypeError(f"{NAME}: dt_limit holds {each!r}, expected numbers")
    low, high = float(limit[0]), float(limit[1])
    if not 0 <= low <= high:
        raise ValueError(f"{NAME}: dt_limit is {limit!r}, expected 0 <= least <= largest")
    return low, high


def _expect_chunk_size(size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, numbers.Integral | torch.SymInt):
        raise TypeError(f"{NAME}: chunk_size is {size!r}, expected a whole number")
    if size < 1:
        raise ValueError(f"{NAME}: chunk_size is {size}, expected at least 1")


@torch.library.custom_op("adder::state_space_dual", mutates_args=())
def _state_space_dual(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    chunk_size: int,
    state: Tensor | None,
    seq_idx: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = Inputs(
        x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_min, dt_max, chunk_size, state, seq_idx
    )
    return portable.forward(inputs, save)


@_state_space_dual.register_fake
def _(x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_min, dt_max, chunk_size, state, seq_idx, save):  # type: ignore[no-untyped-def]
    (b, l, h, p), n = x.shape, B.shape[3]
    if HAS_TRITON and x.device.type == "cuda" and gpu_serves.serves(x, B):
        chunk_size = gpu_serves.CHUNK
    saved = A.new_empty((b, -(-l // chunk_size), h, n, p) if save else (0,))
    return x.new_empty(b, l, h, p), A.new_empty(b, h, p, n), saved


@torch.library.custom_op("adder::state_space_dual_backward", mutates_args=())
def _state_space_dual_backward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    chunk_size: int,
    state: Tensor | None,
    seq_idx: Tensor | None,
    saved: Tensor,
    dy: Tensor,
    dlast: Tensor | None,
) -> list[Tensor]:
    inputs = Inputs(
        x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_min, dt_max, chunk_size, state, seq_idx
    )
    return portable.backward(inputs, saved, dy, dlast)


@_state_space_dual_backward.register_fake
def _(  # type: ignore[no-untyped-def]
    x,
    dt,
    A,
    B,
    C,
    D,
    z,
    dt_bias,
    dt_softplus,
    dt_min,
    dt_max,
    chunk_size,
    state,
    seq_idx,
    saved,
    dy,
    dlast,
):
    def like(each: Tensor | None, dtype: torch.dtype) -> Tensor:
        return x.new_empty(0 if each is None else each.shape, dtype=dtype)

    real = arithmetic(x.dtype)
    return [
        like(x, x.dtype),
        like(dt, x.dtype),
        like(A, real),
        like(B, x.dtype),
        like(C, x.dtype),
        like(D, real),
        like(z, x.dtype if z is not None else real),
        like(dt_bias, real),
        like(state, real),
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, softplus, low, high, chunk_size, state, seq_idx, ctx.saved = inputs
    ctx.save_for_backward(*tensors, state, seq_idx, output[2])
    ctx.options = (softplus, low, high, chunk_size)


def _backward(ctx: Any, dy: Tensor, dlast: Tensor, _: Tensor) -> tuple[Any, ...]:
    if not ctx.saved:  # as in a graph that was exported without gradients
        raise RuntimeError(f"{NAME}: called without `save`, so it has no backward pass")
    *first, state, seq_idx, saved = ctx.saved_tensors
    grads = _state_space_dual_backward(*first, *ctx.options, state, seq_idx, saved, dy, dlast)
    given = (*first, state)
    *grads, dstate = (g if x is not None else None for g, x in zip(grads, given, strict=True))
    return *grads, None, None, None, None, dstate, None, None


_state_space_dual.register_autograd(_backward, setup_context=_setup_context)

if (_native := native.module()) is not None:

    @_state_space_dual.register_kernel("cpu")
    def _(*arguments):  # type: ignore[no-untyped-def]
        *given, save = arguments
        inputs = Inputs(*given)
        if cpu.serves(inputs):
            return cpu.forward(_native, inputs, save)
        return portable.forward(inputs, save)

    @_state_space_dual_backward.register_kernel("cpu")
    def _(*arguments):  # type: ignore[no-untyped-def]
        *given, saved, dy, dlast = arguments
        inputs = Inputs(*given)
        if cpu.serves(inputs):
            return cpu.backward(_native, inputs, saved, dy, dlast)
        return portable.backward(inputs, saved, dy, dlast)


if HAS_TRITON:  # it is imported on the first call on a CUDA device

    @_state_space_dual.register_kernel("cuda")
    def _(*arguments):  # type: ignore[no-untyped-def]
        *given, save = arguments
        inputs = Inputs(*given)
        if gpu_serves.serves(inputs.x, inputs.B):
            from adder.ops.state_space_dual import gpu

            with torch.cuda.device(inputs.x.device):  # Triton launches where the current device is
                return gpu.forward(inputs, save)
        return portable.forward(inputs, save)

    @_state_space_dual_backward.register_kernel("cuda")
    def _(*arguments):  # type: ignore[no-untyped-def]
        *given, saved, dy, dlast = arguments
        inputs = Inputs(*given)
        if gpu_serves.serves(inputs.x, inputs.B):
            from adder.ops.state_space_dual import gpu

            with torch.cuda.device(inputs.x.device):
                return gpu.backward(inputs, saved, dy, dlast)
        return portable.backward(inputs, saved, dy, dlast)
