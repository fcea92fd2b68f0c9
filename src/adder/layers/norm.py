"""Root mean square normalisation as a layer, plain and gated."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adder.ops import gated_norm, rms_norm
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


class GatedRMSNorm(nn.Module):
    """RMSNorm(y * silu(z)), or with `norm_before_gate` RMSNorm(y) * silu(z): Mamba-2's norm (arXiv:2405.21060).

    `group_size` channels are normalised together, a divisor of the width; None means all of them.
    """

    def __init__(
        self,
        width: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = False,
    ):
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.ones(width))

    def forward(
        self, y: Float[Tensor, "... d"], z: Float[Tensor, "... d"]
    ) -> Float[Tensor, "... d"]:
        """Gate and normalise y, in float32 arithmetic at least; the result has y's type."""
        return gated_norm(
            y,
            z,
            self.weight.to(arithmetic(y.dtype)),
            eps=self.eps,
            group_size=self.group_size,
            norm_before_gate=self.norm_before_gate,
        )
