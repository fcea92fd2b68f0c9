"""Root mean square normalisation as a layer."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adder.ops import rms_norm
from adder.ops.dtypes import arithmetic


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalise x, in float32 arithmetic at least; the result has x's type, whatever the weight's is."""
        return rms_norm(x, self.weight.to(arithmetic(x.dtype)), eps=self.eps)
