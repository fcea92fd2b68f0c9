"""The selective scan, one line per equation. It is the truth that every implementation is held against."""

import torch
from einops import einsum, repeat
from torch import Tensor
from torch.nn import functional as F

from adder.ops import dtypes
from adder.ops.dtypes import arithmetic

# Above it softplus(x) = x to the last bit of a double; PyTorch's own threshold, 20, errs by 1e-10.
EXACT = 50.0


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    state: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return y and the last state, step by step. Arguments as in `adder.ops.selective_scan`."""
    b, l, d = u.shape
    n, dtype = A.shape[1], u.dtype
    real = arithmetic(dtype)
    number = dtypes.number(dtype, is_complex=A.is_complex())
    u, delta, A = u.to(real), delta.to(real), A.to(number)
    B, C = (_for_every_channel(each.to(number), b, l, d) for each in (B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(real)
    if delta_softplus:
        delta = F.softplus(delta, threshold=EXACT)
    A_bar = torch.exp(einsum(delta.to(number), A, "b l d, d n -> b l d n"))
    B_bar_u = einsum((delta * u).to(number), B, "b l d, b l d n -> b l d n")
    h = A_bar.new_zeros(b, d, n) if state is None else state
    outputs = []
    for t in range(l):
        if seq_idx is not None and t > 0:
            h = torch.where((seq_idx[:, t] == seq_idx[:, t - 1])[:, None, None], h, 0)
        h = A_bar[:, t] * h + B_bar_u[:, t]
        outputs.append(einsum(C[:, t], h, "b d n, b d n -> b d"))
    y = torch.stack(outputs, dim=1)
    if A.is_complex():
        y = 2 * y.real
    if D is not None:
        y = y + D.to(real) * u
    if z is not None:
        y = y * F.silu(z.to(real))
    return y.to(dtype), h


def _for_every_channel(x: Tensor, b: int, l: int, d: int) -> Tensor:
    """(d n), (b l n) or (b l g n) -> (b l d n)"""
    if x.ndim == 2:
        return repeat(x, "d n -> b l d n", b=b, l=l)
    if x.ndim == 3:
        return repeat(x, "b l n -> b l d n", d=d)
    return repeat(x, "b l g n -> b l (g k) n", k=d // x.shape[2])
