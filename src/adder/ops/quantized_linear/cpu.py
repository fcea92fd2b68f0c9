"""The C++ kernel of products with int8 and int4 weights: how the tensors reach it."""

from typing import Any

from torch import Tensor

from adder.ops.native import STORAGE, address, matrix, side_by_side, threads


def forward(
    native: Any,
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    rows: int,
    columns: int,
    scheme: str,
    bias: Tensor | None,
) -> Tensor:
    """Return y (vectors, rows) of x (vectors, columns), in x's type."""
    x, codes, scales = side_by_side(x), codes.contiguous(), scales.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = x.new_empty(len(x), rows)
    native.quantized_linear(
        STORAGE[x.dtype],
        threads(),
        len(x),
        matrix(codes, scales, rows, columns, scheme),
        address(bias),
        x.data_ptr(),
        x.stride(0),
        y.data_ptr(),
    )
    return y
