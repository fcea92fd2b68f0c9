"""The public norms, and the one PyTorch operator under both."""

import math
from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor

from adder.ops import native
from adder.ops.checks import expect, expect_floating, parameter_dtypes, refuse_forward_mode
from adder.ops.dtypes import arithmetic
from adder.ops.gated_norm import cpu, portable
from adder.ops.gated_norm.reference import gated_norm_reference, rms_norm_reference


def rms_norm(
    x: Float[Tensor, "*outer d"], weight: Float[Tensor, " d"], *, eps: float
) -> Float[Tensor, "*outer d"]:
    r"""Divide each row by its root mean square, and scale each channel.

        y = x / sqrt(mean(x^2) + eps) * weight

    Zhang & Sennrich 2019, arXiv:1910.07467, equation 4.

    Axes: any number of outer axes, then `d` channels, over which the mean runs.

    Args:
        x: the input.
        weight: the scale of each channel, in x's type or in the type of arithmetic.
        eps: added to the mean square, which keeps a row of zeros at zero. In units of x squared.

    Returns:
        y, of x's shape and type.

    Raises:
        ValueError: a shape or device disagrees, an axis is empty, or eps is negative or not finite.
        TypeError: a type disagrees; the messages name the argument.

    Numbers: arithmetic in float32 (float64 for float64 input), sums in a fixed order.
    Cost: 2 tensors of traffic (3 in the backward pass): memory decides.

    Example:
        >>> rms_norm(torch.tensor([3.0, -3.0, 3.0]), torch.ones(3), eps=0.0).tolist()
        [1.0, -1.0, 1.0]
    """
    name = "rms_norm"
    _check(name, "x", x, weight, eps)
    refuse_forward_mode(name, x, weight)
    return _call(x, None, weight, eps, x.shape[-1], False)


def gated_norm(
    y: Float[Tensor, "*outer d"],
    z: Float[Tensor, "*outer d"],
    weight: Float[Tensor, " d"],
    *,
    eps: float,
    group_size: int | None = None,
    norm_before_gate: bool = False,
) -> Float[Tensor, "*outer d"]:
    r"""Gate and normalise, as Mamba-2 does behind its scan.

        out = RMSNorm(y * silu(z)) * weight
        out = RMSNorm(y) * weight * silu(z)         with norm_before_gate

    Dao & Gu 2024, arXiv:2405.21060, section 7.

    Axes: any number of outer axes, then `d` channels.

    Args:
        y: the input.
        z: the gate, of y's shape and type.
        weight: the scale of each channel, in y's type or in the type of arithmetic.
        eps: added to the mean square. In units of y squared.
        group_size: channels that are normalised together, a divisor of d. None means all of them.
        norm_before_gate: the second form above.

    Returns:
        out, of y's shape and type.

    Raises:
        ValueError: a shape or device disagrees, an axis is empty, eps is negative or not finite, or
            group_size does not divide d.
        TypeError: a type disagrees; the messages name the argument.

    Numbers: arithmetic in float32 (float64 for float64 input), sums in a fixed order.
    Cost: 3 tensors of traffic (5 in the backward pass): memory decides.

    Example:
        >>> y, z = torch.tensor([[2.0, -2.0]]), torch.tensor([[0.0, 4.0]])
        >>> gated_norm(y, z, torch.ones(2), eps=1e-5).mul(1000).round().tolist()
        [[0.0, -1414.0]]
    """
    name = "gated_norm"
    _check(name, "y", y, weight, eps)
    axes, sizes = _axes(y)
    expect(name, "z", z, axes, sizes, y, (y.dtype,))
    refuse_forward_mode(name, y, z, weight)
    d = y.shape[-1]
    group_size = d if group_size is None else group_size
    if group_size < 1 or d % group_size:
        raise ValueError(f"{name}: group_size is {group_size}, expected a divisor of d = {d}")
    return _call(y, z, weight, eps, group_size, norm_before_gate)


def _axes(x: Tensor) -> tuple[str, dict[str, int]]:
    axes = [*(f"outer{i}" for i in range(1, x.ndim)), "d"]
    return " ".join(axes), dict(zip(axes, x.shape, strict=True))


def _check(operator: str, name: str, x: Tensor, weight: Tensor, eps: float) -> None:
    expect_floating(operator, name, x)
    shape = tuple(x.shape)
    if x.ndim == 0:
        raise ValueError(f"{operator}: {name} has shape (), expected at least 1 axis (..., d)")
    if x.numel() == 0:
        raise ValueError(f"{operator}: {name} has shape {shape}: axis {shape.index(0)} is empty")
    expect(operator, "weight", weight, "d", {"d": shape[-1]}, x, parameter_dtypes(x.dtype))
    if not 0 <= eps < math.inf:
        raise ValueError(f"{operator}: eps is {eps}, expected a finite number, zero or more")


def _call(
    y: Tensor, z: Tensor | None, weight: Tensor, eps: float, group_size: int, before: bool
) -> Tensor:
    weight = weight.to(arithmetic(y.dtype))
    rows = _as_rows(y)
    gates = None if z is None else _as_rows(z)
    return _gated_norm(rows, gates, weight, eps, group_size, before).view(y.shape)


def _as_rows(x: Tensor) -> Tensor:
    """(..., d) -> (b l d), without a copy for up to three axes"""
    if x.ndim == 3:
        return x
    return (
        x.unsqueeze(0)
        if x.ndim == 2
        else x.reshape(-1, 1 if x.ndim == 1 else x.shape[-2], x.shape[-1])
    )


def _norm(
    y: Tensor,
    z: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
) -> Tensor:
    if z is None:
        return rms_norm_reference(y, weight, eps=eps).contiguous()
    return gated_norm_reference(
        y, z, weight, eps=eps, group_size=group_size, norm_before_gate=norm_before_gate
    ).contiguous()


def _norm_backward(
    y: Tensor,
    z: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    dout: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    dy, dz, dweight = portable.backward(y, z, weight, eps, group_size, norm_before_gate, dout)
    dgate = y.new_empty(0) if dz is None else dz.to(y.dtype).contiguous()
    return dy.to(y.dtype).contiguous(), dgate, dweight


_gated_norm = torch.library.custom_op("adder::gated_norm", _norm, mutates_args=())
_gated_norm_backward = torch.library.custom_op(
    "adder::gated_norm_backward", _norm_backward, mutates_args=()
)


@_gated_norm.register_fake
def _(
    y: Tensor,
    z: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
) -> Tensor:
    return y.new_empty(y.shape)


@_gated_norm_backward.register_fake
def _(
    y: Tensor,
    z: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    dout: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    dz = y.new_empty(0) if z is None else y.new_empty(y.shape)
    return y.new_empty(y.shape), dz, weight.new_empty(weight.shape)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    y, z, weight, *rest = inputs
    ctx.save_for_backward(y, z, weight)
    ctx.rest = rest


def _backward(ctx, dout):  # type: ignore[no-untyped-def]
    y, z, weight = ctx.saved_tensors
    dy, dz, dweight = _gated_norm_backward(y, z, weight, *ctx.rest, dout)
    return dy, None if z is None else dz, dweight, None, None, None


_gated_norm.register_autograd(_backward, setup_context=_setup_context)


if (_native := native.module()) is not None:

    @_gated_norm.register_kernel("cpu")
    def _(y, z, weight, eps, group_size, norm_before_gate):  # type: ignore[no-untyped-def]
        if cpu.serves(y.dtype):
            return cpu.forward(_native, y, z, weight, eps, group_size, norm_before_gate)
        return _norm(y, z, weight, eps, group_size, norm_before_gate)

    @_gated_norm_backward.register_kernel("cpu")
    def _(y, z, weight, eps, group_size, norm_before_gate, dout):  # type: ignore[no-untyped-def]
        if cpu.serves(y.dtype):
            return cpu.backward(_native, y, z, weight, eps, group_size, norm_before_gate, dout)
        return _norm_backward(y, z, weight, eps, group_size, norm_before_gate, dout)


if find_spec("triton") is not None:  # it is imported on the first call on a CUDA device

    @_gated_norm.register_kernel("cuda")
    def _(y, z, weight, eps, group_size, norm_before_gate):  # type: ignore[no-untyped-def]
        from adder.ops.gated_norm import gpu

        if gpu.serves(y, group_size):
            with torch.cuda.device(y.device):  # Triton launches where the current device is
                return gpu.forward(y, z, weight, eps, group_size, norm_before_gate)
        return _norm(y, z, weight, eps, group_size, norm_before_gate)

    @_gated_norm_backward.register_kernel("cuda")
    def _(y, z, weight, eps, group_size, norm_before_gate, dout):  # type: ignore[no-untyped-def]
        from adder.ops.gated_norm import gpu

        if gpu.serves(y, group_size):
            with torch.cuda.device(y.device):
                return gpu.backward(y, z, weight, eps, group_size, norm_before_gate, dout)
        return _norm_backward(y, z, weight, eps, group_size, norm_before_gate, dout)
