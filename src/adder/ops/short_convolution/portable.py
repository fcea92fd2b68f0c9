"""The adjoint of the short convolution in vectorised PyTorch. The reference is its own portable forward pass:
k passes over whole tensors."""

import torch
from torch import Tensor

from adder.ops.short_convolution.reference import short_convolution_reference


def backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    state: Tensor | None,
    seq_idx: Tensor | None,
    dy: Tensor,
    dlast: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight, bias and state, in arithmetic type."""
    (b, length, d), k = x.shape, weight.shape[1]
    working = weight.dtype
    if state is None:
        state = x.new_zeros(b, k - 1, d)
    if seq_idx is None:
        seq_idx = torch.zeros(b, length, dtype=torch.int32, device=x.device)
    inputs = torch.cat([state, x], dim=1).to(working)
    owners = torch.cat([seq_idx[:, :1].expand(b, k - 1), seq_idx], dim=1)
    dy = dy.to(working)
    if activation == "silu":
        before, _ = short_convolution_reference(
            x.to(working), weight, bias, state=state.to(working), seq_idx=seq_idx
        )
        gate = torch.sigmoid(before)
        dy = dy * gate * (1 + before * (1 - gate))
    dinputs = torch.zeros_like(inputs)
    of_last = (owners[:, length:] == seq_idx[:, -1:]).unsqueeze(-1)
    dinputs[:, length:] = torch.where(of_last, dlast.to(working), 0)
    dweight = weight.new_empty(weight.shape)
    for j in range(k):
        reached = slice(k - 1 - j, k - 1 - j + length)
        same = (owners[:, reached] == seq_idx).unsqueeze(-1)
        dtap = torch.where(same, dy, 0)
        dinputs[:, reached] += weight[:, k - 1 - j] * dtap
        dweight[:, k - 1 - j] = (dtap * torch.where(same, inputs[:, reached], 0)).sum((0, 1))
    return dinputs[:, k - 1 :], dweight, dy.sum((0, 1)), dinputs[:, : k - 1]
