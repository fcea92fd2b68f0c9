"""The long convolution as a direct sum, one tap after another. It is the truth that every implementation is held
against."""

import torch
from torch import Tensor


def long_convolution_reference(
    u: Tensor, K: Tensor, *, state: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Return y, and with a state the last k - 1 inputs. Arguments as in `adder.ops.long_convolution`."""
    working = torch.promote_types(u.dtype, torch.float32)
    (b, length, h), k = u.shape, K.shape[-1]
    taps = K.reshape(-1, h, k).to(working)
    before = u.new_zeros(b, k - 1, h) if state is None else state.to(u.dtype)
    inputs = torch.cat([before, u], dim=1)
    y = u.new_zeros(b, length, taps.shape[0], h, dtype=working)
    for j in range(min(k, length) if state is None else k):
        y = y + taps[:, :, j] * inputs[:, k - 1 - j : k - 1 - j + length].unsqueeze(2)
    y = y.flatten(2).to(u.dtype)
    return y if state is None else (y, inputs[:, length:])
