"""Products with int8 and int4 weights, one line per equation: the truth that every implementation is held against."""

import torch
from torch import Tensor
from torch.nn import functional as F

from adder.ops.quantized_linear.weight import GROUP, QuantizedWeight

# Activations of a group that are all smaller count as zeros: 127 over them would overflow before long.
SMALLEST = 1e-30


def quantized_linear_reference(
    x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None
) -> Tensor:
    """Return x W^T + b as defined. Arguments as in `adder.ops.quantized_linear`."""
    w = weight.integers().double()
    scale = weight.scales.float().permute(0, 2, 1).flatten(0, 1)
    xq, sx = quantize_activations(x, weight)
    y = sx.new_zeros(*x.shape[:-1], len(w))
    for g in range(w.shape[1]):
        exact = xq[..., g, :].double() @ w[:, g].T
        y = y + scale[:, g] * sx[..., g, None] * exact.float()
    y = y[..., : weight.rows]
    return (y if bias is None else y + bias.float()).to(x.dtype)


def quantize_activations(x: Tensor, weight: QuantizedWeight) -> tuple[Tensor, Tensor]:
    """Return xq (..., groups, 32), whole numbers as float32, and sx (..., groups).

        sx = max |x| / 127        xq = rint(x (127 / max |x|))

    Both are zero where max |x| is below 1e-30. Where a group holds a NaN or an infinity, sx is NaN.
    """
    groups = F.pad(x.float(), (0, -weight.columns % GROUP)).unflatten(-1, (-1, GROUP))
    largest = groups.abs().amax(-1)
    counts = largest >= SMALLEST
    inverse = torch.where(counts, 127 / largest, 0)
    sx = torch.where(counts, largest / 127, 0)
    finite = groups.isfinite().all(-1)
    xq = torch.where(finite.unsqueeze(-1), groups * inverse.unsqueeze(-1), 0).round()
    return xq, torch.where(finite, sx, torch.nan)
