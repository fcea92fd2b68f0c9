"""RMSNorm, plain and gated, one line per equation. It is the truth that every implementation is held against."""

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm_reference(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Return x over its root mean square. Arguments as in `adder.ops.rms_norm`."""
    working = torch.promote_types(x.dtype, torch.float32)
    return (_normalise(x.to(working), x.shape[-1], eps) * weight.to(working)).to(x.dtype)


def gated_norm_reference(
    y: Tensor,
    z: Tensor,
    weight: Tensor,
    *,
    eps: float,
    group_size: int | None = None,
    norm_before_gate: bool = False,
) -> Tensor:
    """Return y, gated by silu(z) and normalised. Arguments as in `adder.ops.gated_norm`."""
    working = torch.promote_types(y.dtype, torch.float32)
    group_size = group_size or y.shape[-1]
    out, gate = y.to(working), F.silu(z.to(working))
    if not norm_before_gate:
        out = out * gate
    out = _normalise(out, group_size, eps) * weight.to(working)
    if norm_before_gate:
        out = out * gate
    return out.to(y.dtype)


def _normalise(x: Tensor, group_size: int, eps: float) -> Tensor:
    groups = x.unflatten(-1, (-1, group_size))
    mean_square = groups.square().mean(dim=-1, keepdim=True)
    return (groups * torch.rsqrt(mean_square + eps)).flatten(-2)
