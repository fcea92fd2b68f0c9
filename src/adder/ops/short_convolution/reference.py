"""The short convolution, one tap after another. It is the truth that every implementation is held against."""

import torch
from torch import Tensor
from torch.nn import functional as F


def short_convolution_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    state: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return y and the last k - 1 inputs. Arguments as in `adder.ops.short_convolution`."""
    working = torch.promote_types(x.dtype, torch.float32)
    (b, length, d), k = x.shape, weight.shape[1]
    if state is None:
        state = x.new_zeros(b, k - 1, d)
    if seq_idx is None:
        seq_idx = torch.zeros(b, length, dtype=torch.int32, device=x.device)
    inputs = torch.cat([state.to(x.dtype), x], dim=1)
    owners = torch.cat([seq_idx[:, :1].expand(b, k - 1), seq_idx], dim=1)
    y = x.new_zeros(b, length, d, dtype=working)
    for j in range(k):
        reached = slice(k - 1 - j, k - 1 - j + length)
        same = (owners[:, reached] == seq_idx).unsqueeze(-1)
        y = y + weight[:, k - 1 - j].to(working) * torch.where(same, inputs[:, reached], 0)
    if bias is not None:
        y = y + bias.to(working)
    if activation == "silu":
        y = F.silu(y)
    of_last = (owners[:, length:] == seq_idx[:, -1:]).unsqueeze(-1)
    return y.to(x.dtype), torch.where(of_last, inputs[:, length:], 0)
