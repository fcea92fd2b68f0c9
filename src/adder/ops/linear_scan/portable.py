"""The linear scan and its adjoint in vectorised PyTorch, for every device and every type, complex ones included.

Inside a chunk the recurrence is added up by doubling, all chunks at once; the states at the ends of the
chunks are a linear scan again, chunks long, and are found in the same way. Nothing is divided by a decay.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 32


def forward(
    a: Tensor, x: Tensor, state: Tensor | None, reverse: bool, seq_idx: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return h in x's type and the last state in arithmetic type: a, x (b l c), state (b c)."""
    working = torch.promote_types(x.dtype, torch.float32)
    if seq_idx is None:
        seq_idx = torch.zeros(x.shape[:2], dtype=torch.int32, device=x.device)
    a, x = a.to(working), x.to(working)
    if reverse:
        a, x, seq_idx = a.flip(1), x.flip(1), seq_idx.flip(1)
    if state is not None:
        x = torch.cat([x[:, :1] + a[:, :1] * state.unsqueeze(1), x[:, 1:]], dim=1)
    h = _scan(a, x.clone() if x.shape[1] == 1 else x, seq_idx)
    last = h[:, -1].clone()
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


def _scan(a: Tensor, x: Tensor, seq_idx: Tensor) -> Tensor:
    """h[t] = a[t] h[t-1] + x[t], restarting where seq_idx changes: (b l c)"""
    b, length, c = x.shape
    if length <= CHUNK:
        return _double(a.unsqueeze(1), x.unsqueeze(1), seq_idx.unsqueeze(1))[1].squeeze(1)
    rest = -length % CHUNK
    if rest:
        a, x = F.pad(a, (0, 0, 0, rest)), F.pad(x, (0, 0, 0, rest))
        seq_idx = torch.cat([seq_idx, seq_idx[:, -1:].expand(b, rest)], dim=1)
    a, x = a.view(b, -1, CHUNK, c), x.view(b, -1, CHUNK, c)
    seq_idx = seq_idx.reshape(b, -1, CHUNK)
    a, h = _double(a, x, seq_idx)
    ends = _scan(a[:, :-1, -1], h[:, :-1, -1], seq_idx[:, :-1, -1])
    reached = seq_idx[:, 1:] == seq_idx[:, :-1, -1:]
    carried = torch.where(reached.unsqueeze(-1), a[:, 1:] * ends.unsqueeze(2), 0)
    h = torch.cat([h[:, :1], h[:, 1:] + carried], dim=1)
    return h.view(b, -1, c)[:, :length]


def _double(a: Tensor, x: Tensor, seq_idx: Tensor) -> tuple[Tensor, Tensor]:
    """Add up along axis 2 of (b chunks t c): return the product of the decays up to each step, and h.

    After each round a step holds the sum of twice as many steps before it (Hillis & Steele 1986).
    A decay that reaches into another packed sequence becomes zero, and the state there is not read.
    """
    shift = 1
    while shift < x.shape[2]:
        joined = (seq_idx[:, :, shift:] == seq_idx[:, :, :-shift]).unsqueeze(-1)
        late = a[:, :, shift:]
        added = torch.where(joined, late * x[:, :, :-shift], 0)
        decay = torch.where(joined, late * a[:, :, :-shift], 0)
        x = torch.cat([x[:, :, :shift], x[:, :, shift:] + added], dim=2)
        a = torch.cat([a[:, :, :shift], decay], dim=2)
        shift *= 2
    return a, x
