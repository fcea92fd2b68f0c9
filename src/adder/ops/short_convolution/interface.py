"""The public short convolution, and the PyTorch operator under it."""

from importlib.util import find_spec
from typing import Literal

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
from adder.ops.short_convolution import cpu, portable
from adder.ops.short_convolution.reference import short_convolution_reference


def short_convolution(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"] | None = None,
    *,
    activation: Literal["silu"] | None = None,
    state: Float[Tensor, "b k-1 d"] | None = None,
    seq_idx: Int32[Tensor, "b l"] | None = None,
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b k-1 d"]]:
    r"""Convolve each channel with its own few taps, causally.

        y[t] = act(bias + sum_j weight[:, k-1-j] x[t-j])        j = 0 .. k-1

    The last column of `weight` meets the present, as in `torch.nn.Conv1d` with groups = d. It is the
    convolution before the scan in Mamba (Gu & Dao 2023, arXiv:2312.00752, section 3.4) and H3.

    Axes: `b` batch, `l` length, `d` channels, `k` taps, from 1 upwards.

    Args:
        x: the input.
        weight, bias: in x's type, or in the type of arithmetic.
        activation: "silu", z / (1 + e^-z), or None for the identity.
        state: the k-1 inputs before x[0], the oldest first. None means zeros.
        seq_idx: the number of the packed sequence that each step belongs to, non-decreasing along the
            length. A tap that reaches into another sequence reads zero; the state belongs to the first.

    Returns:
        y, and the last k-1 inputs of the last sequence in x's type. Pass them as `state` to continue: one
        call on a whole sequence and two on its parts agree. Both carry gradients.

    Raises:
        ValueError: a shape or device disagrees, an axis is empty, seq_idx goes backwards, or the
            activation is unknown.
        TypeError: a type disagrees; the messages name the argument.

    Numbers: sums in float32 (float64 for float64 input), in a fixed order for any number of threads.
    Cost: b l d k multiply-adds, and 2 tensors of traffic (3 in the backward pass).

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1)
        >>> y, state = short_convolution(x, torch.tensor([[10.0, 1.0]]))
        >>> y.flatten().tolist(), state.flatten().tolist()
        ([1.0, 12.0, 23.0], [3.0])
    """
    name = "short_convolution"
    expect_floating(name, "x", x)
    sizes = sizes_of(name, "x", x, "b l d")
    sizes["k"] = sizes_of(name, "weight", weight, "d k")["k"]
    sizes["k-1"] = sizes["k"] - 1
    parameters = parameter_dtypes(x.dtype)
    expect(name, "weight", weight, "d k", sizes, x, parameters)
    expect(name, "bias", bias, "d", sizes, x, parameters)
    expect(name, "state", state, "b k-1 d", sizes, x, parameters)
    expect_packing(name, seq_idx, sizes, x)
    if activation not in (None, "silu"):
        raise ValueError(f'{name}: activation is {activation!r}, expected "silu" or None')
    refuse_forward_mode(name, x, weight, bias, state)
    working = arithmetic(x.dtype)
    return _short_convolution(
        x,
        weight.to(working),
        None if bias is None else bias.to(working),
        activation,
        None if state is None else state.to(x.dtype),
        seq_idx,
    )


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    state: Tensor | None,
    seq_idx: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return short_convolution_reference(
        x, weight, bias, activation=activation, state=state, seq_idx=seq_idx
    )


def _adjoint(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    state: Tensor | None,
    seq_idx: Tensor | None,
    dy: Tensor,
    dlast: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx, dweight, dbias, dstate = portable.backward(
        x, weight, bias, activation, state, seq_idx, dy, dlast
    )
    return _fresh(dx, x.dtype), dweight, dbias, _fresh(dstate, x.dtype)


def _fresh(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy: dx and dstate are views of one tensor, and an operator's outputs may not share memory."""
    return x.to(dtype, copy=True, memory_format=torch.contiguous_format)


_short_convolution = torch.library.custom_op(
    "adder::short_convolution", _convolution, mutates_args=()
)
_short_convolution_backward = torch.library.custom_op(
    "adder::short_convolution_backward", _adjoint, mutates_args=()
)


@_short_convolution.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    state: Tensor | None,
    seq_idx: Tensor | None,
) -> tuple[Tensor, Tensor]:
    b, _, d = x.shape
    return x.new_empty(x.shape), x.new_empty(b, weight.shape[1] - 1, d)


@_short_convolution_backward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    state: Tensor | None,
    seq_idx: Tensor | None,
    dy: Tensor,
    dlast: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[0]),
        dlast.new_empty(dlast.shape),
    )


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, bias, activation, state, seq_idx = inputs
    ctx.save_for_backward(x, weight, bias, state, seq_idx)
    ctx.activation = activation


def _backward(ctx, dy, dlast):  # type: ignore[no-untyped-def]
    x, weight, bias, state, seq_idx = ctx.saved_tensors
    dx, dweight, dbias, dstate = _short_convolution_backward(
        x, weight, bias, ctx.activation, state, seq_idx, dy, dlast
    )
    return (
        dx,
        dweight,
        None if bias is None else dbias,
        None,
        None if state is None else dstate,
        None,
    )


_short_convolution.register_autograd(_backward, setup_context=_setup_context)


if (_native := native.module()) is not None:

    @_short_convolution.register_kernel("cpu")
    def _(x, weight, bias, activation, state, seq_idx):  # type: ignore[no-untyped-def]
        if cpu.serves(x.dtype):
            return cpu.forward(_native, x, weight, bias, activation, state, seq_idx)
        return _convolution(x, weight, bias, activation, state, seq_idx)

    @_short_convolution_backward.register_kernel("cpu")
    def _(x, weight, bias, activation, state, seq_idx, dy, dlast):  # type: ignore[no-untyped-def]
        if cpu.serves(x.dtype):
            return cpu.backward(_native, x, weight, bias, activation, state, seq_idx, dy, dlast)
        return _adjoint(x, weight, bias, activation, state, seq_idx, dy, dlast)


if find_spec("triton") is not None:  # it is imported on the first call on a CUDA device

    @_short_convolution.register_kernel("cuda")
    def _(x, weight, bias, activation, state, seq_idx):  # type: ignore[no-untyped-def]
        from adder.ops.short_convolution import gpu

        if gpu.serves(x, weight):
            with torch.cuda.device(x.device):  # Triton launches where the current device is
                return gpu.forward(x, weight, bias, activation, state, seq_idx)
        return _convolution(x, weight, bias, activation, state, seq_idx)

    @_short_convolution_backward.register_kernel("cuda")
    def _(x, weight, bias, activation, state, seq_idx, dy, dlast):  # type: ignore[no-untyped-def]
        from adder.ops.short_convolution import gpu

        if gpu.serves(x, weight):
            with torch.cuda.device(x.device):
                return gpu.backward(x, weight, bias, activation, state, seq_idx, dy, dlast)
        return _adjoint(x, weight, bias, activation, state, seq_idx, dy, dlast)
