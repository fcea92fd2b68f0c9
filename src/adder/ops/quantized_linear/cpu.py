"""The C++ kernel of products with int8 and int4 weights: how the tensors reach it."""

from typing import Any

from torch import Tensor

from adder.ops.native import STORAGE, address, matrix, side_by_side, threads
from adder.ops.quantized_linear.weight import QuantizedWeight


def forward(native: Any, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    """Return y (vectors, rows) of x (vectors, columns), in x's type."""
    x = side_by_side(x)
    y = x.new_empty(len(x), weight.rows)
    packed = matrix(weight.codes, weight.scales, weight.rows, weight.columns, weight.scheme)
    native.quantized_linear(
        STORAGE[x.dtype],
        threads(),
        len(x),
        packed,
        address(bias),
        x.data_ptr(),
        x.stride(0),
        y.data_ptr(),
    )
    return y
