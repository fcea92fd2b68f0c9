"""The public dense layer, and the PyTorch operator under its large products."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from adder.ops.checks import expect, expect_floating, refuse_forward_mode, sizes_of
from adder.ops.linear import cpu

NAME = "linear"


def linear(
    x: Float[Tensor, "*outer i"],
    weight: Float[Tensor, "o i"],
    bias: Float[Tensor, " o"] | None = None,
) -> Float[Tensor, "*outer o"]:
    r"""Multiply each row by a matrix.

        y = x W^T + b

    It is `torch.nn.functional.linear`, by oneDNN where that is faster than PyTorch's own choice.

    Axes: any number of outer axes, `i` inputs, `o` outputs.

    Args:
        x: the input.
        weight, bias: of x's type. Under autocast types may differ, as in PyTorch.

    Returns:
        y, of x's type, or of autocast's.

    Raises:
        ValueError: a shape or device disagrees, or an axis is empty.
        TypeError: a type disagrees; the messages name the argument.

    Numbers: float32 is added up in float32, bfloat16 and float16 at least in float32, and rounded once. The gradients
    are products of the same kind, so there are derivatives of any order, in reverse mode. torch.func.grad
    and its kin fail where oneDNN serves, on AMD's processors from 2^24 multiply-adds on: use torch.autograd.grad.
    Cost: rows i o multiply-adds, twice that in the backward pass: arithmetic decides, from some tens of rows on.

    Example:
        >>> linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.ones(2)).tolist()
        [[12.0, 3.0]]
    """
    expect_floating(NAME, "x", x)
    if x.ndim == 0 or x.numel() == 0:
        raise ValueError(
            f"{NAME}: x has shape {tuple(x.shape)}, expected at least 1 axis (..., i), none of them empty"
        )
    sizes = sizes_of(NAME, "weight", weight, "o i")
    if weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"{NAME}: x has shape {tuple(x.shape)}, expected (..., i) with i = {weight.shape[1]}, "
            f"as weight {tuple(weight.shape)} has"
        )
    autocast = cpu.autocasts(x.device.type)
    for name, each, axes in (("weight", weight, "o i"), ("bias", bias, "o")):
        types = (each.dtype,) if autocast and isinstance(each, Tensor) else (x.dtype,)
        expect(NAME, name, each, axes, sizes, x, types)
    refuse_forward_mode(NAME, x, weight, bias)
    if autocast or not cpu.serves(x, weight):
        return F.linear(x, weight, bias)
    return _linear(x, weight, bias)


_linear = torch.library.custom_op("adder::linear", cpu.plain, mutates_args=())


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias = bias is not None


def _backward(ctx, dy):  # type: ignore[no-untyped-def]
    """dx = dy W, dW = dy^T x, db = the sum of dy: the first two are dense layers again."""
    x, weight = ctx.saved_tensors
    wants_x, wants_weight, wants_bias = ctx.needs_input_grad
    rows, drows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    dx = _either(drows, weight.t()).view(x.shape) if wants_x else None
    dweight = _either(drows.t(), rows.t()) if wants_weight else None
    return dx, dweight, drows.sum(0) if ctx.bias and wants_bias else None


def _either(x: Tensor, weight: Tensor) -> Tensor:
    return _linear(x, weight, None) if cpu.serves(x, weight) else cpu.plain(x, weight, None)


_linear.register_autograd(_backward, setup_context=_setup_context)

if cpu.REFUSAL is None:

    @_linear.register_kernel("cpu")
    def _(x, weight, bias):  # type: ignore[no-untyped-def]
        return cpu.forward(x, weight, bias)
