"""State space duality and its adjoint as matrix products over chunks, in PyTorch: never (b, l, h, p, n) at once.

It serves every device without a kernel of ours. Inside a chunk, s and t are steps; row 0 of `Chunk.decay` is the
state before the chunk, row s + 1 its step s. What must not be read is masked before it is exponentiated or
multiplied, and left out of products: zero times NaN is NaN.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from adder.ops.dtypes import arithmetic
from adder.ops.selective_scan.reference import EXACT


class Inputs(NamedTuple):
    """What both passes read. A, D, dt_bias and state are in the type of the arithmetic."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    dt_softplus: bool
    dt_min: float
    dt_max: float
    chunk_size: int
    state: Tensor | None
    seq_idx: Tensor | None


class Chunk(NamedTuple):
    """A few steps in the type of the arithmetic. Masks are None where all steps are of one sequence.

    x, scaled (b t h p), scaled = dt x; raw, dt (b t h), raw before softplus and limits; B, C (b g t n)
    decay (b h 1+t t): exp of the log-decays summed from behind a row to a column, zero where it is not reached
    reached: the mask of decay without its first row, for (b h s t)
    numbers (b t): which sequence a step is of
    entered, left (b t 1 1): the steps that the state before the chunk reaches, and that reach the state after it
    crossed (b 1 1 1): whether the state before reaches the state after
    """

    x: Tensor
    scaled: Tensor
    raw: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    decay: Tensor
    reached: Tensor
    numbers: Tensor | None
    entered: Tensor | None
    left: Tensor | None
    crossed: Tensor | None


def forward(inputs: Inputs, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the last state, and with `save` the state before each chunk (b chunks h n p), else an empty tensor."""
    x, A = inputs.x, inputs.A
    (b, _, h, p), n = x.shape, inputs.B.shape[3]
    state = A.new_zeros(b, h, p, n) if inputs.state is None else inputs.state
    slices, numbers = _slices(inputs), _numbers(inputs.seq_idx)
    y = x.new_empty(x.shape)  # contiguous, whatever x is
    saved = A.new_empty((b, len(slices), h, n, p) if save else (0,))
    with torch.autocast(x.device.type, enabled=False):
        for k, at in enumerate(slices):
            if save:
                saved[:, k] = state.mT
            chunk = _chunk(inputs, at, numbers)
            out = _output(inputs, chunk, _inside(chunk) + _entering(chunk, state))
            y[:, at] = out if inputs.z is None else out * F.silu(inputs.z[:, at].to(out.dtype))
            state = _after(chunk, state)
    return y, state.contiguous(), saved


def backward(inputs: Inputs, saved: Tensor, dy: Tensor, dlast: Tensor | None) -> list[Tensor]:
    """Return the gradients of x, dt, A, B, C, D, z, dt_bias and state; an empty tensor for an absent one."""
    x, dt, A, B, C, D, z, dt_bias, softplus, dt_min, dt_max, _, state, _ = inputs
    dx, ddt, dB, dC = (each.new_empty(each.shape) for each in (x, dt, B, C))
    dz = A.new_empty(0) if z is None else z.new_empty(z.shape)
    # Of each chunk: one sum over all of them errs less than a running one.
    dA: list[Tensor] = []
    dD: list[Tensor] = []
    dbias: list[Tensor] = []
    carry = A.new_zeros(saved[:, 0].mT.shape) if dlast is None else dlast
    numbers = _numbers(inputs.seq_idx)
    with torch.autocast(x.device.type, enabled=False):
        for k, at in reversed(list(enumerate(_slices(inputs)))):
            chunk, before = _chunk(inputs, at, numbers), saved[:, k].mT
            entering = _entering(chunk, before)
            dout = dy[:, at].to(A.dtype)
            if z is not None:
                gate = z[:, at].to(A.dtype)
                open_ = torch.sigmoid(gate)
                y = _output(inputs, chunk, _inside(chunk) + entering)
                dz[:, at] = dout * y * open_ * (1 + gate * (1 - open_))
                dout = dout * gate * open_
            dscaled, dB_, dC_, dlog, carry = _adjoint(chunk, before, entering, dout, carry)
            dB[:, at], dC[:, at] = dB_.transpose(1, 2), dC_.transpose(1, 2)
            skipped = 0 if D is None else _for_channels(D) * dout
            dx[:, at] = dscaled * chunk.dt.unsqueeze(-1) + skipped
            step = dlog * A + (dscaled * chunk.x).sum(-1)
            free = F.softplus(chunk.raw, threshold=EXACT) if softplus else chunk.raw
            step = step.masked_fill((free < dt_min) | (free > dt_max), 0)
            if softplus:
                step = step * torch.sigmoid(chunk.raw)
            ddt[:, at] = step
            dA.append((dlog * chunk.dt).sum((0, 1)))
            dD.append((dout * chunk.x).sum((0, 1)))
            dbias.append(step.sum((0, 1)))
    none = A.new_empty(0)
    skip = torch.stack(dD).sum(0)
    return [
        dx,
        ddt,
        torch.stack(dA).sum(0),
        dB,
        dC,
        none if D is None else skip if D.ndim == 2 else skip.sum(-1),
        dz,
        none.clone() if dt_bias is None else torch.stack(dbias).sum(0),
        none.clone() if state is None else carry.contiguous(),
    ]


def _adjoint(
    chunk: Chunk, before: Tensor, entering: Tensor, dout: Tensor, carry: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of dt x (b t h p), B, C (b g t n), the log-decays (b t h) and the state before.

    `dout` (b t h p) arrives at the output, `carry` (b h p n) at the state after the chunk.
    """
    enter, leave, whole = _edges(chunk)
    decay, scores = chunk.decay[:, :, 1:], _scores(chunk)
    weights = _for_heads(scores, decay)
    dweights = _by_head(chunk.scaled) @ _by_head(dout).mT
    dweights = torch.where(chunk.reached, dweights, 0)
    dscores = (dweights * decay).unflatten(1, (scores.shape[1], -1)).sum(2)
    leaving = _only(chunk.left, leave * _from_state(chunk.B, carry))
    dscaled = leaving + _by_head(_product(weights, _by_head(dout), chunk.numbers, reverse=True))
    through_state = _by_group(chunk, enter * dout) @ _by_group_state(chunk, before)
    dC = _product(dscores, chunk.B, chunk.numbers)
    dC = dC + _only(_as_rows(chunk.entered), through_state)
    through_state = _by_group(chunk, leave * chunk.scaled) @ _by_group_state(chunk, carry)
    dB = _product(dscores, chunk.C, chunk.numbers, reverse=True)
    dB = dB + _only(_as_rows(chunk.left), through_state)

    kept = _only(chunk.crossed, whole * carry)
    # The gradient of each sum of log-decays; then that of a log-decay: of every sum that it is part of.
    sums = F.pad(dweights * weights, (0, 0, 1, 0))
    sums[:, :, 0] += _only(chunk.entered, dout * entering).sum(-1).mT
    sums[:, :, 1:, -1] += _only(chunk.left, chunk.scaled * leaving).sum(-1).mT
    sums[:, :, 0, -1] += _only(chunk.crossed, kept * before).sum((-2, -1))
    dlog = sums.flip(-1).cumsum(-1).flip(-1).triu().sum(2).mT

    entered = _by_group(chunk, _only(chunk.entered, enter * dout))
    dbefore = entered.mT @ _only(_as_rows(chunk.entered), chunk.C)
    return dscaled, dB, dC, dlog, kept + dbefore.reshape(kept.shape)


def _slices(inputs: Inputs) -> list[slice]:
    length, size = inputs.x.shape[1], inputs.chunk_size
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _numbers(seq_idx: Tensor | None) -> Tensor | None:
    """Number the sequences of each row: (b, 1 + l), the state's first. One that comes back is a new one."""
    if seq_idx is None:
        return None
    return F.pad((seq_idx[:, 1:] != seq_idx[:, :-1]).cumsum(1), (2, 0))


def _chunk(inputs: Inputs, at: slice, numbers: Tensor | None) -> Chunk:
    real = arithmetic(inputs.x.dtype)
    x, raw = inputs.x[:, at].to(real), inputs.dt[:, at].to(real)
    if inputs.dt_bias is not None:
        raw = raw + inputs.dt_bias
    dt = F.softplus(raw, threshold=EXACT) if inputs.dt_softplus else raw
    dt = dt.clamp(inputs.dt_min, inputs.dt_max)
    B, C = (each[:, at].to(real).transpose(1, 2) for each in (inputs.B, inputs.C))
    steps, t = _by_head((dt * inputs.A).unsqueeze(-1)).mT, dt.shape[1]
    grid = torch.ones(1 + t, t, dtype=torch.bool, device=x.device)
    spanned, reached = grid.triu(), grid.triu(-1)
    entered = left = crossed = own = None
    if numbers is not None:
        near = numbers[:, at.start : at.stop + 1]
        own = near[:, 1:]
        reached = reached & (near[:, :, None] == near[:, None, 1:]).unsqueeze(1)
        entered = (own == near[:, :1])[:, :, None, None]
        left = (own == near[:, -1:])[:, :, None, None]
        crossed = entered[:, -1:]
    # Added up from every row anew: a difference of two running sums would lose digits, and inf - inf is NaN.
    sums = torch.where(spanned, steps, 0).cumsum(-1)
    decay = sums.masked_fill(~reached, -torch.inf).exp()
    scaled = dt.unsqueeze(-1) * x
    reached = reached[..., 1:, :]
    return Chunk(x, scaled, raw, dt, B, C, decay, reached, own, entered, left, crossed)


def _edges(chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
    """Return the decays from the state before to each step, from each step to the state after, and over the chunk."""
    enter, leave = chunk.decay[:, :, 0].mT, chunk.decay[:, :, 1:, -1].mT
    return enter.unsqueeze(-1), leave.unsqueeze(-1), chunk.decay[:, :, 0, -1, None, None]


def _scores(chunk: Chunk) -> Tensor:
    """B[s] . C[t]: (b g s t)"""
    return torch.where(chunk.reached, chunk.B @ chunk.C.mT, 0)


def _inside(chunk: Chunk) -> Tensor:
    """What the steps of a chunk give to its outputs: (b t h p)."""
    weights = _for_heads(_scores(chunk), chunk.decay[:, :, 1:])
    return _by_head(_product(weights, _by_head(chunk.scaled), chunk.numbers))


def _entering(chunk: Chunk, before: Tensor) -> Tensor:
    """What the state before a chunk gives to its outputs: (b t h p)."""
    return _only(chunk.entered, _edges(chunk)[0] * _from_state(chunk.C, before))


def _after(chunk: Chunk, before: Tensor) -> Tensor:
    """The state after a chunk (b h p n), the one before it being `before`."""
    _, leave, whole = _edges(chunk)
    added = _by_group(chunk, _only(chunk.left, leave * chunk.scaled)).mT
    added = added @ _only(_as_rows(chunk.left), chunk.B)
    return _only(chunk.crossed, whole * before) + added.reshape(before.shape)


def _product(
    weights: Tensor, values: Tensor, numbers: Tensor | None, *, reverse: bool = False
) -> Tensor:
    """Return the sum over s of weights[s, t] values[s], or with `reverse` over t of weights[s, t] values[t].

    A value that is not finite makes NaN of the steps that it reaches, and of no other.
    """
    bad = ~values.isfinite()
    product = (weights if reverse else weights.mT) @ values.masked_fill(bad, 0)
    if reverse:
        bad, numbers = bad.flip(-2), None if numbers is None else numbers.flip(1)
    met = bad.cumsum(-2, dtype=torch.int32)
    if numbers is not None:
        step = torch.arange(numbers.shape[1], device=numbers.device)
        starts = F.pad(numbers[:, 1:] != numbers[:, :-1], (1, 0))
        first = torch.where(starts, step, 0).cummax(1).values[:, None, :, None]
        met = met - (met - bad.int()).gather(2, first.expand(met.shape))
    met = met > 0
    return product.masked_fill(met.flip(-2) if reverse else met, torch.nan)


def _output(inputs: Inputs, chunk: Chunk, y: Tensor) -> Tensor:
    return y if inputs.D is None else y + _for_channels(inputs.D) * chunk.x


def _only(mask: Tensor | None, x: Tensor) -> Tensor:
    return x if mask is None else torch.where(mask, x, 0)


def _as_rows(mask: Tensor | None) -> Tensor | None:
    """(b t 1 1) -> (b 1 t 1), for what has its groups before its steps"""
    return None if mask is None else mask.transpose(1, 2)


def _for_channels(D: Tensor) -> Tensor:
    return D if D.ndim == 2 else D.unsqueeze(-1)


def _for_heads(scores: Tensor, decay: Tensor) -> Tensor:
    """(b g s t), (b h s t) -> (b h s t)"""
    return (scores.unsqueeze(2) * decay.unflatten(1, (scores.shape[1], -1))).flatten(1, 2)


def _by_head(x: Tensor) -> Tensor:
    """(b t h p) -> (b h t p), and back"""
    return x.transpose(1, 2)


def _by_group(chunk: Chunk, x: Tensor) -> Tensor:
    """(b t h p) -> (b g t (k p)), with the k heads of a group side by side"""
    return x.unflatten(2, (chunk.B.shape[1], -1)).flatten(3).transpose(1, 2)


def _by_group_state(chunk: Chunk, state: Tensor) -> Tensor:
    """(b h p n) -> (b g (k p) n)"""
    return state.unflatten(1, (chunk.B.shape[1], -1)).flatten(2, 3)


def _from_state(projection: Tensor, state: Tensor) -> Tensor:
    """Project a state (b h p n) on each step's B or C (b g t n): (b t h p)."""
    h, g = state.shape[1], projection.shape[1]
    rows = state.unflatten(1, (g, -1)).flatten(2, 3)
    return (projection @ rows.mT).transpose(1, 2).unflatten(3, (h // g, -1)).flatten(2, 3)
