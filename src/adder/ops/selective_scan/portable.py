"""The selective scan and its adjoint in vectorised PyTorch, chunk by chunk: never (b, l, d, n) at once.

It serves every device without a kernel of ours, and what the kernels leave out: complex A, constant B or C,
B and C of different groups, float16.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from adder.ops.associative_scan import associative_scan
from adder.ops.dtypes import arithmetic
from adder.ops.selective_scan.reference import EXACT

CHUNK = 32


class Inputs(NamedTuple):
    """What both passes read. B and C are (b l g n) or (d n); A, D, delta_bias and state in arithmetic type."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool
    state: Tensor | None
    seq_idx: Tensor | None


class Chunk(NamedTuple):
    """The inputs of a few steps in arithmetic type, B and C broadcast over channels: (b t d n) or (1 1 d n).

    `joins` (b): whether the first step continues the packed sequence of the step before it.
    """

    u: Tensor
    raw: Tensor
    delta: Tensor
    decay: Tensor
    B: Tensor
    C: Tensor
    seq_idx: Tensor | None
    joins: Tensor | None


def forward(inputs: Inputs, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the last state, and with `save` the state before each chunk (b chunks n d), else an empty tensor."""
    u, A = inputs.u, inputs.A
    (b, _, d), n = u.shape, A.shape[1]
    h = A.new_zeros(b, d, n) if inputs.state is None else inputs.state
    ys, saved = [], []
    for at in _slices(inputs):
        chunk = _chunk(inputs, at)
        saved.append(h.transpose(1, 2))
        states = _states(chunk, h)
        h = states[:, -1].clone(memory_format=torch.contiguous_format)
        ys.append(_gated(inputs, at, _output(inputs, chunk, states)).to(u.dtype))
    return torch.cat(ys, dim=1), h, torch.stack(saved, dim=1) if save else A.new_empty(0)


def backward(inputs: Inputs, saved: Tensor, dy: Tensor, dlast: Tensor | None) -> list[Tensor]:
    """Return the gradients of u, delta, A, B, C, D, z, delta_bias and state; an empty tensor for an absent one."""
    u, delta, A, B, C, D, z, delta_bias, softplus, state, _ = inputs
    (b, _, d), n = u.shape, A.shape[1]
    real = delta.new_zeros(0, dtype=arithmetic(u.dtype))
    du, ddelta = u.new_empty(u.shape), u.new_empty(u.shape)  # contiguous, whatever u is
    dB, dC = B.new_zeros(B.shape), C.new_zeros(C.shape)
    dz = z.new_empty(z.shape) if z is not None else real.clone()
    # Of each chunk: one sum over all of them errs less than a running one.
    dA: list[Tensor] = []
    dD: list[Tensor] = []
    dbias: list[Tensor] = []
    carry = A.new_zeros(b, d, n) if dlast is None else dlast
    for k, at in reversed(list(enumerate(_slices(inputs)))):
        chunk = _chunk(inputs, at)
        before = saved[:, k].transpose(1, 2)
        states = _states(chunk, before)
        dout = dy[:, at].to(real.dtype)
        if z is not None:
            gate = z[:, at].to(real.dtype)
            open_ = torch.sigmoid(gate)
            y = _output(inputs, chunk, states)
            dz[:, at] = (dout * y * open_ * (1 + gate * (1 - open_))).to(z.dtype)
            dout = dout * gate * open_
        seed = (2 if A.is_complex() else 1) * dout.unsqueeze(-1)
        # dh[t] = conj(C[t]) dy[t] + conj(decay[t+1]) dh[t+1]; `carry` is what comes in from after the chunk.
        # Conjugates are written out: a lazy one inside an operator is forgotten under torch.compile.
        dstates = seed * chunk.C.conj_physical()
        dstates[:, -1] += carry
        following = F.pad(chunk.decay[:, 1:], (0, 0, 0, 0, 0, 1)).conj_physical()
        dstates = _reversed_scan(following, dstates, chunk.seq_idx)
        carry = _joined(chunk, chunk.decay[:, 0].conj_physical() * dstates[:, 0])
        earlier = torch.cat([_joined(chunk, before).unsqueeze(1), states[:, :-1]], dim=1)
        if chunk.seq_idx is not None:
            earlier = earlier.masked_fill(_starts(chunk.seq_idx)[..., None, None], 0)
        exponent = dstates * (chunk.decay * earlier).conj_physical()  # the gradient of delta A
        by_B = _real_sum(dstates * chunk.B.conj_physical())
        ddt = _real_sum(exponent * A.conj_physical()) + chunk.u * by_B
        if softplus:
            ddt = ddt * torch.sigmoid(chunk.raw)
        du[:, at] = (chunk.delta * by_B + (0 if D is None else D * dout)).to(u.dtype)
        ddelta[:, at] = ddt.to(delta.dtype)
        dA.append((exponent * chunk.delta.unsqueeze(-1)).sum((0, 1)))
        _add_projection(dB, at, dstates * (chunk.delta * chunk.u).unsqueeze(-1))
        _add_projection(dC, at, seed * states.conj_physical())
        dD.append((dout * chunk.u).sum((0, 1)))
        dbias.append(ddt.sum((0, 1)))
    return [
        du,
        ddelta,
        torch.stack(dA).sum(0),
        dB,
        dC,
        torch.stack(dD).sum(0) if D is not None else real.clone(),
        dz,
        torch.stack(dbias).sum(0) if delta_bias is not None else real.clone(),
        carry.clone(memory_format=torch.contiguous_format) if state is not None else A.new_empty(0),
    ]


def _slices(inputs: Inputs) -> list[slice]:
    length = inputs.u.shape[1]
    return [slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]


def _chunk(inputs: Inputs, at: slice) -> Chunk:
    real = arithmetic(inputs.u.dtype)
    u, raw = inputs.u[:, at].to(real), inputs.delta[:, at].to(real)
    if inputs.delta_bias is not None:
        raw = raw + inputs.delta_bias
    delta = F.softplus(raw, threshold=EXACT) if inputs.delta_softplus else raw
    decay = torch.exp(delta.unsqueeze(-1) * inputs.A)
    B, C = (_projection(each, at, u.shape[2], inputs.A.dtype) for each in (inputs.B, inputs.C))
    if inputs.seq_idx is None:
        return Chunk(u, raw, delta, decay, B, C, None, None)
    before = max(at.start - 1, 0)  # the first step of all continues the state given
    joins = inputs.seq_idx[:, at.start] == inputs.seq_idx[:, before]
    return Chunk(u, raw, delta, decay, B, C, inputs.seq_idx[:, at], joins)


def _projection(x: Tensor, at: slice, d: int, dtype: torch.dtype) -> Tensor:
    if x.ndim == 2:
        return x[None, None]
    return x[:, at].to(dtype).repeat_interleave(d // x.shape[2], dim=2)


def _add_projection(to: Tensor, at: slice, gradient: Tensor) -> None:
    """Add the gradient (b t d n) of a projection to that of B or C, summed over what shared it."""
    if to.ndim == 2:
        to += gradient.sum((0, 1)) if to.is_complex() else _real(gradient).sum((0, 1))
    else:
        summed = gradient.unflatten(2, (to.shape[2], -1)).sum(3)
        to[:, at] = (summed if to.is_complex() else _real(summed)).to(to.dtype)


def _states(chunk: Chunk, before: Tensor) -> Tensor:
    """Return the states of a chunk (b t d n), the one before it being (b d n)."""
    x = (chunk.delta * chunk.u).unsqueeze(-1) * chunk.B
    x[:, 0] += _joined(chunk, chunk.decay[:, 0] * before)
    return associative_scan(chunk.decay, x, chunk.seq_idx)[1]


def _reversed_scan(a: Tensor, x: Tensor, seq_idx: Tensor | None) -> Tensor:
    """Return h[t] = a[t] h[t+1] + x[t]."""
    flipped = None if seq_idx is None else seq_idx.flip(1)
    return associative_scan(a.flip(1), x.flip(1), flipped)[1].flip(1)


def _joined(chunk: Chunk, state: Tensor) -> Tensor:
    """Return the state (b d n) that crosses into the chunk, zero where another packed sequence starts there."""
    if chunk.joins is None:
        return state
    return torch.where(chunk.joins[:, None, None], state, 0)


def _starts(seq_idx: Tensor) -> Tensor:
    """Return where, inside these steps, a packed sequence starts: (b t)."""
    return F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))


def _output(inputs: Inputs, chunk: Chunk, states: Tensor) -> Tensor:
    y = _real_sum(chunk.C * states) * (2 if inputs.A.is_complex() else 1)
    return y if inputs.D is None else y + inputs.D * chunk.u


def _gated(inputs: Inputs, at: slice, y: Tensor) -> Tensor:
    return y if inputs.z is None else y * F.silu(inputs.z[:, at].to(y.dtype))


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x


def _real_sum(x: Tensor) -> Tensor:
    """Sum over states; what multiplies a real signal has a real gradient."""
    return _real(x.sum(-1))
