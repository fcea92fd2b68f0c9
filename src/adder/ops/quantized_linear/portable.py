"""Products with int8 and int4 weights in vectorised PyTorch, a block of vectors at a time.

The sums within a group are products of float32 matrices, and exact in whatever order and precision a device adds
them: 32 * 127 * 127 < 2^24, and 127 has the 8 bits of a bfloat16.
"""

import torch
from torch import Tensor

from adder.ops.quantized_linear.reference import quantize_activations
from adder.ops.quantized_linear.weight import QuantizedWeight

_BLOCK = 1 << 20  # results that are summed at once, to bound memory


def forward(x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    """Return y (vectors, rows) of x (vectors, columns), in x's type."""
    y = x.new_empty(len(x), weight.rows)
    with torch.autocast(x.device.type, enabled=False):
        w = weight.integers().float().permute(1, 2, 0)  # (groups, 32, padded rows)
        scale = weight.scales.float().transpose(0, 1).flatten(1)  # (groups, padded rows)
        many = max(1, _BLOCK // w.shape[-1])
        for first in range(0, len(x), many):
            block = slice(first, first + many)
            total = _product(x[block], weight, w, scale)[:, : weight.rows]
            y[block] = total if bias is None else total + bias.float()
    return y


def _product(x: Tensor, weight: QuantizedWeight, w: Tensor, scale: Tensor) -> Tensor:
    xq, sx = quantize_activations(x, weight)
    total = sx.new_zeros(len(x), w.shape[-1])
    for g in range(len(w)):
        # Two roundings, as in the reference: addcmul may make one of them.
        total += (scale[g] * sx[:, g, None]).mul_(xq[:, g] @ w[g])
    return total
