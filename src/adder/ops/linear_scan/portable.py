"""The linear scan and its adjoint in vectorised PyTorch, for every device and every type, complex ones included.

Inside a chunk the recurrence is added up by doubling, all chunks at once; the states at the ends of the
chunks are a linear scan again, chunks long, and are found in the same way. Nothing is divided by a decay.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from adder.ops.associative_scan import associative_scan

CHUNK = 32


def forward(
    a: Tensor, x: Tensor, state: Tensor | None, reverse: bool, seq_idx: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return h in x's type and the last state in arithmetic type: a, x (b l c), state (b c)."""
    working = torch.promote_types(x.dtype, torch.float32)
    a, x = a.to(working), x.to(working)
    if reverse:
        a, x = a.flip(1), x.flip(1)
        seq_idx = None if seq_idx is None else seq_idx.flip(1)
    if state is not None:
        x = torch.cat([x[:, :1] + a[:, :1] * state.unsqueeze(1), x[:, 1:]], dim=1)
    h = _scan(a, x.clone() if x.shape[1] == 1 else x, seq_idx)
    last = h[:, -1].clone(memory_format=torch.contiguous_format)
    return (h.flip(1) if reverse else h), last


def backward(
    a: Tensor,
    h: Tensor,
    state: Tensor | None,
    reverse: bool,
    seq_idx: Tensor | None,
    dh: Tensor,
    dlast: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a, x and state, in arithmetic type: the same scan from the other end.

    Conjugates are written out: a lazy conjugate inside an operator is forgotten under torch.compile.
    """
    working = dlast.dtype
    if reverse:
        a, h, dh = a.flip(1), h.flip(1), dh.flip(1)
        seq_idx = None if seq_idx is None else seq_idx.flip(1)
    a, h, dh = a.to(working), h.to(working), dh.to(working)
    following = F.pad(a[:, 1:], (0, 0, 0, 1)).conj_physical()
    dh = torch.cat([dh[:, :-1], dh[:, -1:] + dlast.unsqueeze(1)], dim=1)
    dx, _ = forward(following, dh, None, True, seq_idx)
    before = torch.zeros_like(h[:, 0]) if state is None else state
    earlier = torch.cat([before.unsqueeze(1), h[:, :-1]], dim=1)
    if seq_idx is not None:
        starts = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))
        earlier = earlier.masked_fill(starts.unsqueeze(-1), 0)
    da = dx * earlier.conj_physical()
    dstate = dx[:, 0] * a[:, 0].conj_physical()
    return (da.flip(1), dx.flip(1), dstate) if reverse else (da, dx, dstate)


def _scan(a: Tensor, x: Tensor, seq_idx: Tensor | None) -> Tensor:
    """h[t] = a[t] h[t-1] + x[t], restarting where seq_idx changes: (b l c)"""
    b, length, c = x.shape
    if length <= CHUNK:
        return associative_scan(a, x, seq_idx)[1]
    rest = -length % CHUNK
    if rest:
        a, x = F.pad(a, (0, 0, 0, rest)), F.pad(x, (0, 0, 0, rest))
    owners = None
    if seq_idx is not None:
        owners = torch.cat([seq_idx, seq_idx[:, -1:].expand(b, rest)], dim=1).view(-1, CHUNK)
    a, h = associative_scan(a.reshape(-1, CHUNK, c), x.reshape(-1, CHUNK, c), owners)
    a, h = a.view(b, -1, CHUNK, c), h.view(b, -1, CHUNK, c)
    if owners is None:
        carried = a[:, 1:] * _scan(a[:, :-1, -1], h[:, :-1, -1], None).unsqueeze(2)
    else:
        owners = owners.view(b, -1, CHUNK)
        ends = _scan(a[:, :-1, -1], h[:, :-1, -1], owners[:, :-1, -1])
        reached = owners[:, 1:] == owners[:, :-1, -1:]
        carried = torch.where(reached.unsqueeze(-1), a[:, 1:] * ends.unsqueeze(2), 0)
    h = torch.cat([h[:, :1], h[:, 1:] + carried], dim=1)
    return h.view(b, -1, c)[:, :length]
