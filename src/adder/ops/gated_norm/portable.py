"""The adjoint of RMSNorm, plain (z is None) and gated, in vectorised PyTorch. The reference is its own portable
forward pass."""

import torch
from torch import Tensor


def backward(
    y: Tensor,
    z: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    dout: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the gradients of y, z and weight in arithmetic type: y, z (b l d)."""
    working = weight.dtype
    y, dout = y.to(working), dout.to(working)
    gate = slope = None
    if z is not None:
        z = z.to(working)
        opened = torch.sigmoid(z)
        gate, slope = z * opened, opened * (1 + z * (1 - opened))
    inside = y * gate if gate is not None and not norm_before_gate else y
    dscaled = dout * gate if gate is not None and norm_before_gate else dout

    groups = inside.unflatten(-1, (-1, group_size))
    scale = torch.rsqrt(groups.square().mean(dim=-1, keepdim=True) + eps)
    normal = groups * scale
    dnormal = (dscaled * weight).unflatten(-1, (-1, group_size))
    dinside = scale * (dnormal - normal * (dnormal * normal).mean(dim=-1, keepdim=True))
    normal, dinside = normal.flatten(-2), dinside.flatten(-2)

    dweight = (dscaled * normal).sum((0, 1))
    if gate is None:
        return dinside, None, dweight
    if norm_before_gate:
        return dinside, dout * normal * weight * slope, dweight
    return dinside * gate, dinside * y * slope, dweight
