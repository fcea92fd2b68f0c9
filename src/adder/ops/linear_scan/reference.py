"""The linear recurrence, one step after another. It is the truth that every implementation is held against."""

import torch
from torch import Tensor


def linear_scan_reference(
    a: Tensor,
    x: Tensor,
    state: Tensor | None = None,
    *,
    reverse: bool = False,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return h and the last state. Arguments as in `adder.ops.linear_scan`."""
    working = torch.promote_types(x.dtype, torch.float32)
    length = x.shape[1]
    h = torch.zeros_like(x[:, 0], dtype=working) if state is None else state.to(working)
    step = -1 if reverse else 1
    first, end = (length - 1, -1) if reverse else (0, length)
    decays, inputs, states = a.to(working).unbind(1), x.to(working).unbind(1), []
    for t in range(first, end, step):
        if seq_idx is not None and t != first:
            goes_on = seq_idx[:, t] == seq_idx[:, t - step]
            h = torch.where(goes_on.view(-1, *[1] * (h.ndim - 1)), h, 0)
        h = decays[t] * h + inputs[t]
        states.append(h)
    return torch.stack(states[::step], dim=1).to(x.dtype), h
