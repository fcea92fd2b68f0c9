"""State space duality, one line per equation. It is the truth that every implementation is held against."""

import math

import torch
from einops import einsum, repeat
from torch import Tensor
from torch.nn import functional as F

from adder.ops.dtypes import arithmetic
from adder.ops.selective_scan.reference import EXACT


def state_space_dual_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    state: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return y and the last state, step by step. Arguments as in `adder.ops.state_space_dual`."""
    b, l, h, p = x.shape
    g, n = B.shape[2:]
    dtype, real = x.dtype, arithmetic(x.dtype)
    x, dt, A = x.to(real), dt.to(real), A.to(real)
    B, C = (repeat(each.to(real), "b l g n -> b l (g k) n", k=h // g) for each in (B, C))
    if dt_bias is not None:
        dt = dt + dt_bias.to(real)
    if dt_softplus:
        dt = F.softplus(dt, threshold=EXACT)
    dt = dt.clamp(*dt_limit)
    A_bar = torch.exp(dt * A)
    B_bar = einsum(dt, B, "b l h, b l h n -> b l h n")
    H = x.new_zeros(b, h, p, n) if state is None else state
    outputs = []
    for t in range(l):
        if seq_idx is not None and t > 0:
            H = torch.where((seq_idx[:, t] == seq_idx[:, t - 1])[:, None, None, None], H, 0)
        H = A_bar[:, t, :, None, None] * H + einsum(x[:, t], B_bar[:, t], "b h p, b h n -> b h p n")
        outputs.append(einsum(C[:, t], H, "b h n, b h p n -> b h p"))
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + (D.to(real) if D.ndim == 2 else D.to(real)[:, None]) * x
    if z is not None:
        y = y * F.silu(z.to(real))
    return y.to(dtype), H
