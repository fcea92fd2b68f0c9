"""Dropout over a sequence, step by step or for all steps at once."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Module):
    """Dropout of (b, l, d); tied, a channel is dropped for all steps of a sequence at once."""

    def __init__(self, probability: float, tied: bool):
        super().__init__()
        self.probability, self.tied = probability, tied

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """x as it is in evaluation mode."""
        if not (self.training and self.probability):
            return x
        if not self.tied:
            return F.dropout(x, self.probability)
        return x * F.dropout(torch.ones_like(x[:, :1]), self.probability)
