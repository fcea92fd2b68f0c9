"""One token through a stack of blocks, one line per equation: the truth that the kernel is held against."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from adder.ops.mamba_step.weights import (
    AnyBlock,
    BlockWeights,
    Mamba2BlockWeights,
    StackWeights,
    Weight,
)
from adder.ops.quantized_linear.reference import quantized_linear_reference
from adder.ops.quantized_linear.weight import QuantizedWeight

States = Sequence[tuple[Tensor, Tensor]]


def mamba_step_reference(
    stack: StackWeights, ids: Tensor, states: States, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Return the logits (b v) and the states after the token, computed in `dtype`.

    A matrix of bfloat16 meets vectors rounded to bfloat16, one of int8 or int4 vectors rounded as `quantized_linear`
    defines; nothing else is rounded.
    """
    embedding = stack.embedding
    rows = embedding.row(ids) if isinstance(embedding, QuantizedWeight) else embedding[ids]
    residual, after = rows.to(dtype), []
    for block, (conv, ssm) in zip(stack.blocks, states, strict=True):
        normed = _norm(residual, block.norm, stack.eps)
        if isinstance(block, BlockWeights):
            y, conv, ssm = _mamba(block, normed, conv.to(dtype), ssm.to(dtype))
        else:
            y, conv, ssm = _mamba2(block, normed, conv.to(dtype), ssm.to(dtype))
        residual = residual + y
        after.append((conv, ssm))
    return _project(stack.head, None, _norm(residual, stack.norm, stack.eps))[
        :, : stack.vocab_size
    ], after


def _mamba(w: BlockWeights, u: Tensor, conv: Tensor, ssm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, dtype = w.A_log.shape[1], u.dtype
    x, z = _project(w.in_proj, w.in_bias, u).chunk(2, dim=-1)
    x, conv = _convolve(w, x, conv)
    dt, B, C = _project(w.x_proj, None, x).split([w.dt_proj.shape[1], n, n], dim=-1)
    dt = F.softplus(_project(w.dt_proj, w.dt_bias, dt)).unsqueeze(-1)
    ssm = torch.exp(-w.A_log.to(dtype).exp() * dt) * ssm + dt * B.unsqueeze(1) * x.unsqueeze(-1)
    y = (torch.einsum("bdn,bn->bd", ssm, C) + w.D.to(dtype) * x) * F.silu(z)
    return _project(w.out_proj, w.out_bias, y), conv, ssm


def _mamba2(
    w: Mamba2BlockWeights, u: Tensor, conv: Tensor, ssm: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    _, d, n, _, h, g = w.sizes
    dtype = u.dtype
    z, xBC, dt = _project(w.in_proj, w.in_bias, u).split([d, d + 2 * g * n, h], dim=-1)
    xBC, conv = _convolve(w, xBC, conv)
    x, B, C = xBC.split([d, g * n, g * n], dim=-1)
    x = x.unflatten(-1, (h, d // h))
    B, C = (each.unflatten(-1, (g, n)).repeat_interleave(h // g, dim=1) for each in (B, C))
    dt = F.softplus(dt + w.dt_bias.to(dtype)).clamp(*w.dt_limit)
    decay = torch.exp(-w.A_log.to(dtype).exp() * dt)
    ssm = decay[..., None, None] * ssm + torch.einsum("bh,bhp,bhn->bhpn", dt, x, B)
    D = w.D.to(dtype).reshape(h, -1)  # (h, 1) or (h, p)
    y = (torch.einsum("bhpn,bhn->bhp", ssm, C) + D * x).flatten(1)
    if w.gate_norm is None:
        y = y * F.silu(z)
    else:
        y = y if w.norm_before_gate else y * F.silu(z)
        y = _norm(y.unflatten(-1, (g, -1)), w.gate_norm.view(g, -1), w.gate_eps).flatten(1)
        y = y * F.silu(z) if w.norm_before_gate else y
    return _project(w.out_proj, w.out_bias, y), conv, ssm


def _convolve(w: AnyBlock, x: Tensor, conv: Tensor) -> tuple[Tensor, Tensor]:
    window = torch.cat([conv, x.unsqueeze(1)], dim=1)
    mixed = torch.einsum("bkd,dk->bd", window, w.conv_weight.to(x.dtype))
    x = F.silu(mixed if w.conv_bias is None else mixed + w.conv_bias.to(x.dtype))
    return x, window[:, 1:]


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight.to(x.dtype)


def _project(weight: Weight, bias: Tensor | None, x: Tensor) -> Tensor:
    if isinstance(weight, QuantizedWeight):
        y = quantized_linear_reference(x.float(), weight).to(x.dtype)
    else:
        x = x.bfloat16().to(x.dtype) if weight.dtype == torch.bfloat16 else x
        y = x @ weight.to(x.dtype).T
    return y if bias is None else y + bias.to(x.dtype)
