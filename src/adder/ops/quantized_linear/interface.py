"""The public product, and the PyTorch operator under it."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from adder.ops import native
from adder.ops.checks import expect, expect_floating, refuse_forward_mode
from adder.ops.quantized_linear import cpu, portable
from adder.ops.quantized_linear.weight import QuantizedWeight, check_layout

STORED = (torch.float32, torch.bfloat16)


def quantized_linear(
    x: Float[Tensor, "*outer columns"],
    weight: QuantizedWeight,
    bias: Float[Tensor, " rows"] | None = None,
) -> Float[Tensor, "*outer rows"]:
    r"""Multiply by a matrix of int8 or int4 weights, with activations rounded to 8 bits as they come.

        sx[g] = max |x| / 127,  xq = rint(x / sx[g])                       in each group g of 32 columns
        y[r] = sum_g scale[r, g] sx[g] (sum_c w[r, c] xq[c]) + b[r]        the inner sum exact, the outer in order

    Axes: any number of outer axes, then `columns`, as many as the weight has.

    Args:
        x: the input, float32 or bfloat16.
        weight: as `quantize` makes it.
        bias: added to each row, float32 or in x's type.

    Returns:
        y, in x's type.

    Raises:
        ValueError: a shape or device disagrees, or an axis is empty.
        TypeError: a type disagrees; the messages name the argument.
        NotImplementedError: x or bias requires a gradient: rounding has none that would train a model.

    Numbers: arithmetic in float32. Each vector is rounded and summed by itself: its result does not depend on
    those beside it, nor on the number of threads. A NaN or an infinity in x makes its whole vector NaN.
    Cost: one pass over the codes for each block of vectors.

    Example:
        >>> weight = quantize(torch.tensor([[1.0, -2.0], [0.0, 4.0]]), "int8")
        >>> quantized_linear(torch.tensor([3.0, 1.0]), weight).mul(10).round().tolist()
        [10.0, 40.0]
    """
    name = "quantized_linear"
    if not isinstance(weight, QuantizedWeight):
        raise TypeError(
            f"{name}: weight is a {type(weight).__name__}, expected a QuantizedWeight, as quantize makes it"
        )
    return call(x, weight.codes, weight.scales, weight.rows, weight.columns, weight.scheme, bias)


def call(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    rows: int,
    columns: int,
    scheme: str,
    bias: Tensor | None,
) -> Tensor:
    """`quantized_linear` of a weight's parts. All are checked at every call: a module's buffers may be replaced."""
    name = "quantized_linear"
    check_layout(name, codes, scales, rows, columns, scheme)
    expect_floating(name, "x", x)
    shape = tuple(x.shape)
    if x.ndim == 0 or shape[-1] != columns:
        raise ValueError(f"{name}: x has shape {shape}, expected (..., columns) = (..., {columns})")
    if x.numel() == 0:
        raise ValueError(f"{name}: x has shape {shape}: axis {shape.index(0)} is empty")
    if x.dtype not in STORED:
        raise TypeError(f"{name}: x is {x.dtype}, expected torch.float32 or torch.bfloat16")
    if x.device != codes.device:
        raise ValueError(f"{name}: weight is on {codes.device}, expected {x.device}")
    expect(name, "bias", bias, "rows", {"rows": rows}, x, (x.dtype, torch.float32))
    refuse_forward_mode(name, x, bias)
    for argument, each in (("x", x), ("bias", bias)):
        if each is not None and each.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError(
                f"{name}: {argument} requires a gradient, and a product with {scheme} weights has none: "
                "train the float model, and quantise it then; or use torch.no_grad()"
            )
    vectors = x.reshape(math.prod(shape[:-1]), columns)
    bias = None if bias is None else bias.float()
    return _quantized_linear(vectors, codes, scales, rows, columns, scheme, bias).view(
        *shape[:-1], rows
    )


def _forward(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    rows: int,
    columns: int,
    scheme: str,
    bias: Tensor | None,
) -> Tensor:
    return portable.forward(x, QuantizedWeight(codes, scales, rows, columns, scheme), bias)  # type: ignore[arg-type]


# x (m columns), bias (rows) float32 or None -> (m rows), contiguous
_quantized_linear = torch.library.custom_op("adder::quantized_linear", _forward, mutates_args=())


@_quantized_linear.register_fake
def _(x, codes, scales, rows, columns, scheme, bias):  # type: ignore[no-untyped-def]
    check_layout("quantized_linear", codes, scales, rows, columns, scheme)
    return x.new_empty(x.shape[0], rows)


if (_native := native.module()) is not None:

    @_quantized_linear.register_kernel("cpu")
    def _(x, codes, scales, rows, columns, scheme, bias):  # type: ignore[no-untyped-def]
        return cpu.forward(_native, x, codes, scales, rows, columns, scheme, bias)
