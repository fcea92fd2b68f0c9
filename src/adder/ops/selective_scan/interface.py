"""The selective scan (S6): the public function, and the operators under it that PyTorch dispatches by device."""

from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Complex, Float, Int32
from torch import Tensor

from adder.ops import dtypes, native
from adder.ops.checks import (
    expect,
    expect_floating,
    expect_packing,
    parameter_dtypes,
    refuse_forward_mode,
    sizes_of,
)
from adder.ops.dtypes import arithmetic
from adder.ops.selective_scan import cpu, portable
from adder.ops.selective_scan.portable import CHUNK, Inputs

NAME = "selective_scan"


def selective_scan(
    u: Float[Tensor, "b l d"],
    delta: Float[Tensor, "b l d"],
    A: Float[Tensor, "d n"] | Complex[Tensor, "d n"],
    B: Tensor,
    C: Tensor,
    D: Float[Tensor, " d"] | None = None,
    *,
    z: Float[Tensor, "b l d"] | None = None,
    delta_bias: Float[Tensor, " d"] | None = None,
    delta_softplus: bool = False,
    state: Tensor | None = None,
    seq_idx: Int32[Tensor, "b l"] | None = None,
) -> tuple[Float[Tensor, "b l d"], Tensor]:
    r"""Run a diagonal state space model whose step and projections change at every time step.

        dt[t] = softplus(delta[t] + delta_bias)               (softplus where delta_softplus)
        h[t]  = exp(dt[t] A) * h[t-1] + dt[t] B[t] u[t]
        y[t]  = (C[t] . h[t] + D u[t]) * silu(z[t])           (the gate where z is given)

    Algorithm 2 of Mamba (Gu & Dao 2023, arXiv:2312.00752, section 3.2). A is discretised by
    zero-order hold and B by one Euler step, as in the authors' code.

    Axes: b batch, l length, d channels, n state size, g groups of channels that share B and C.

    Args:
        u: the input.
        delta: the step size, positive after its bias and softplus.
        A: the continuous-time diagonal, with negative real part for a stable model. Complex A holds one of
            each conjugate pair: B, C and the state are complex then, and y[t] = 2 Re(C[t] . h[t]) + D u[t].
        B, C: input and output projections: (b l n), by groups of channels (b l g n), or constant (d n).
        D: the skip connection.
        z: the gate.
        delta_bias: added to delta before the softplus.
        state: h[-1], (b d n). None means zero.
        seq_idx: packed sequences, non-decreasing along the length: the state restarts at zero where it changes.
            `state` belongs to the first sequence of each row, the returned state to the last.

    Returns:
        y and h[l-1]. Pass the second as `state` to continue: a call on a whole sequence and two calls on its
        parts agree. Both results carry gradients.

    Raises:
        ValueError: a shape or device disagrees, an axis is empty, seq_idx goes backwards.
        TypeError: a dtype is not the one asked for; the message names the argument.

    Numbers: u, delta, B, C, z share one dtype, float32, float64, bfloat16 or float16, which y has as well. A, D,
    delta_bias and the state are float32 (float64 for float64 input), and so is the arithmetic.
    Cost: b l d n exponentials and 3 b l d n multiply-adds. Nothing of size (b, l, d, n) is stored; for the
    backward pass the state before every 32nd step is kept and the others are computed again.

    Example:
        >>> b, l, d, n = 2, 5, 3, 4
        >>> y, h = selective_scan(torch.ones(b, l, d), torch.ones(b, l, d), -torch.ones(d, n),
        ...                       torch.ones(b, l, n), torch.ones(b, l, n), torch.zeros(d))
        >>> y.shape, h.shape
        (torch.Size([2, 5, 3]), torch.Size([2, 3, 4]))
    """
    sizes = sizes_of(NAME, "u", u, "b l d")
    expect_floating(NAME, "u", u)
    sizes["n"] = sizes_of(NAME, "A", A, "d n")["n"]
    real = arithmetic(u.dtype)
    number = dtypes.number(u.dtype, is_complex=A.is_complex())
    projection = (*parameter_dtypes(u.dtype), number) if A.is_complex() else (u.dtype,)
    expect(NAME, "delta", delta, "b l d", sizes, u, (u.dtype,))
    expect(
        NAME, "A", A, "d n", sizes, u, (number,) if A.is_complex() else parameter_dtypes(u.dtype)
    )
    B = _projection("B", B, sizes, u, projection, number)
    C = _projection("C", C, sizes, u, projection, number)
    expect(NAME, "D", D, "d", sizes, u, parameter_dtypes(u.dtype))
    expect(NAME, "z", z, "b l d", sizes, u, (u.dtype,))
    expect(NAME, "delta_bias", delta_bias, "d", sizes, u, parameter_dtypes(u.dtype))
    expect(NAME, "state", state, "b d n", sizes, u, (number,))
    expect_packing(NAME, seq_idx, sizes, u)
    A = A.to(number)
    D, delta_bias = (None if each is None else each.to(real) for each in (D, delta_bias))
    differentiable = (u, delta, A, B, C, D, z, delta_bias, state)
    refuse_forward_mode(NAME, *differentiable)
    save = torch.is_grad_enabled() and any(
        each is not None and each.requires_grad for each in differentiable
    )
    y, last, _ = _selective_scan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, state, seq_idx, save
    )
    return y, last


def _projection(
    name: str,
    x: Tensor,
    sizes: dict[str, int],
    u: Tensor,
    dtypes: tuple[torch.dtype, ...],
    number: torch.dtype,
) -> Tensor:
    """Check B or C and return it as (b l g n) or (d n), complex where A is."""
    if x.ndim == 4:
        groups = x.shape[2]
        if groups == 0 or sizes["d"] % groups:
            raise ValueError(
                f"{NAME}: {name} has shape {tuple(x.shape)}: its {groups} groups do not divide "
                f"{sizes['d']} channels"
            )
        expect(NAME, name, x, "b l g n", {**sizes, "g": groups}, u, dtypes)
    elif x.ndim == 3:
        expect(NAME, name, x, "b l n", sizes, u, dtypes)
        x = x.unsqueeze(2)
    elif x.ndim == 2:
        expect(NAME, name, x, "d n", sizes, u, (*dtypes, number))
        return x.to(number)
    else:
        raise ValueError(
            f"{NAME}: {name} has shape {tuple(x.shape)}, expected (b, l, n), (b, l, g, n) or (d, n)"
        )
    return x.to(number) if number.is_complex else x


@torch.library.custom_op("adder::selective_scan", mutates_args=())
def _selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    state: Tensor | None,
    seq_idx: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = Inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state, seq_idx)
    return portable.forward(inputs, save)


@_selective_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state, seq_idx, save):  # type: ignore[no-untyped-def]
    (b, l, d), n = u.shape, A.shape[1]
    saved = A.new_empty((b, -(-l // CHUNK), n, d) if save else (0,))
    return u.new_empty(b, l, d), A.new_empty(b, d, n), saved


@torch.library.custom_op("adder::selective_scan_backward", mutates_args=())
def _selective_scan_backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    state: Tensor | None,
    seq_idx: Tensor | None,
    saved: Tensor,
    dy: Tensor,
    dlast: Tensor | None,
) -> list[Tensor]:
    inputs = Inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state, seq_idx)
    return portable.backward(inputs, saved, dy, dlast)


@_selective_scan_backward.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state, seq_idx, saved, dy, dlast):  # type: ignore[no-untyped-def]
    real = arithmetic(u.dtype)

    def like(x: Tensor | None, dtype: torch.dtype) -> Tensor:
        return u.new_empty(0 if x is None else x.shape, dtype=dtype)

    return [
        like(u, u.dtype),
        like(delta, u.dtype),
        like(A, A.dtype),
        like(B, B.dtype),
        like(C, C.dtype),
        like(D, real),
        like(z, u.dtype if z is not None else real),
        like(delta_bias, real),
        like(state, A.dtype),
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, softplus, state, seq_idx, ctx.saved = inputs
    ctx.save_for_backward(*tensors, state, seq_idx, output[2])
    ctx.softplus = softplus


def _backward(ctx: Any, dy: Tensor, dlast: Tensor, _: Tensor) -> tuple[Any, ...]:
    if not ctx.saved:  # as in a graph that was exported without gradients
        raise RuntimeError(f"{NAME}: called without `save`, so it has no backward pass")
    u, delta, A, B, C, D, z, delta_bias, state, seq_idx, saved = ctx.saved_tensors
    grads = _selective_scan_backward(
        u, delta, A, B, C, D, z, delta_bias, ctx.softplus, state, seq_idx, saved, dy, dlast
    )
    given = (u, delta, A, B, C, D, z, delta_bias, state)
    *first, dstate = (g if x is not None else None for g, x in zip(grads, given, strict=True))
    return *first, None, dstate, None, None


_selective_scan.register_autograd(_backward, setup_context=_setup_context)

if (_native := native.module()) is not None:

    @_selective_scan.register_kernel("cpu")
    def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state, seq_idx, save):  # type: ignore[no-untyped-def]
        inputs = Inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state, seq_idx)
        if cpu.serves(inputs):
            return cpu.forward(_native, inputs, save)
        return portable.forward(inputs, save)

    @_selective_scan_backward.register_kernel("cpu")
    def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state, seq_idx, saved, dy, dlast):  # type: ignore[no-untyped-def]
        inputs = Inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state, seq_idx)
        if cpu.serves(inputs):
            return cpu.backward(_native, inputs, saved, dy, dlast)
        return portable.backward(inputs, saved, dy, dlast)


if find_spec("triton") is not None:  # it is imported on the first call on a CUDA device

    @_selective_scan.register_kernel("cuda")
    def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state, seq_idx, save):  # type: ignore[no-untyped-def]
        from adder.ops.selective_scan import gpu

        inputs = Inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state, seq_idx)
        if gpu.serves(inputs):
            with torch.cuda.device(u.device):  # Triton launches where the current device is
                return gpu.forward(inputs, save)
        return portable.forward(inputs, save)

    @_selective_scan_backward.register_kernel("cuda")
    def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state, seq_idx, saved, dy, dlast):  # type: ignore[no-untyped-def]
        from adder.ops.selective_scan import gpu

        inputs = Inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state, seq_idx)
        if gpu.serves(inputs):
            with torch.cuda.device(u.device):
                return gpu.backward(inputs, saved, dy, dlast)
        return portable.backward(inputs, saved, dy, dlast)
