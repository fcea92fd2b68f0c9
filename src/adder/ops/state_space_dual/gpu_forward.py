"""The Triton kernels of state space duality's forward pass: decays, states of chunks, state passing, outputs."""

import triton
import triton.language as tl

from adder.ops.gpu_math import sigmoid, softplus
from adder.ops.state_space_dual.gpu_common import (
    GRID,
    LEAST,
    LOG2E,
    LOG2E_REST,
    any_infinite,
    clean,
    decays,
    exact_product,
    gated,
    marked,
    operand,
    place,
    product,
    rows_of,
    sequences,
    spoiled,
    state_block,
    weights_of,
)


@triton.jit
def _restarting(start, total, other_start, other):
    """The sum of both, or the later one where a sequence starts in it."""
    return start | other_start, tl.where(other_start > 0, other, total + other)


@triton.jit
def steps_kernel(
    dt, A, bias, seq_idx, steps, sums, rests, number, slopes, dt_b, dt_l,
    length, heads, chunks, dt_min, dt_max, SOFTPLUS: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Step sizes and sums of log2-decays (b h chunks T), 0 past the end; sequences (b chunks T); with `slopes`, the
    derivative of the step size."""
    batch, chunk, head = place(tl.program_id(0), heads, chunks)
    row = chunk * T + tl.arange(0, T)
    inside = row < length
    raw = tl.load(dt + batch * dt_b + row * dt_l + head, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        raw += tl.load(bias + head)
    free = softplus(raw) if SOFTPLUS else raw
    step = tl.where(free < dt_min, dt_min, tl.where(free > dt_max, dt_max, free))
    step = tl.where(inside, step, 0.0)
    to = (batch * heads + head) * (chunks * T) + row
    tl.store(steps + to, step)
    if slopes is not None:
        slope = sigmoid(raw) if SOFTPLUS else raw * 0 + 1.0
        tl.store(slopes + to, tl.where((free < dt_min) | (free > dt_max), 0.0, slope))
    log = step.to(tl.float64) * tl.load(A + head).to(tl.float64)
    log = log * LOG2E + log * LOG2E_REST
    log = tl.where(log < LEAST, LEAST, log)
    if seq_idx is not None:
        at = seq_idx + batch * length + row
        later = inside & (row > 0)
        here = tl.load(at, mask=later, other=0)
        start = (here != tl.load(at - 1, mask=later, other=0)).to(tl.int32)
        _, total = tl.associative_scan((start, log), 0, _restarting)
        if head == 0:
            tl.store(number + batch * (chunks * T) + row, tl.cumsum(start, 0))
    else:
        total = tl.cumsum(log, 0)
    coarse = tl.floor(total * GRID) / GRID
    tl.store(sums + to, coarse.to(tl.float32))
    tl.store(rests + to, (total - coarse).to(tl.float32))


@triton.jit
def states_kernel(
    x, z, B, steps, sums, rests, number, states, x_b, x_l, z_b, z_l, B_b, B_l,
    length, heads, chunks, per_group, p, n, ADJOINT: tl.constexpr, PRECISION: tl.constexpr,
    T: tl.constexpr, K: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """What a chunk adds to the state behind it, sum_s L(s, T) B[s] X[s]^T: (b chunks h n p).

    ADJOINT: to the gradient of the state before it, sum_t L(-1, t) C[t] q[t]^T, x being dy and B being C.
    """
    batch, chunk, head = place(tl.program_id(0), heads, chunks)
    c, i = tl.arange(0, P), tl.program_id(1) * N + tl.arange(0, N)
    x += batch * x_b + head * p
    B += batch * B_b + head // per_group * n
    if z is not None:
        z += batch * z_b + head * p
    first = (batch * heads + head) * (chunks * T) + chunk * T
    numbers = batch * (chunks * T) + chunk * T
    last = sequences(number, numbers + T - 1)
    last_sum, last_rest = tl.load(sums + first + T - 1), tl.load(rests + first + T - 1)
    total = tl.zeros((N, P), tl.float32)
    for k in range(0, T, K):
        t = k + tl.arange(0, K)
        row = chunk * T + t
        own, sum_, rest = (
            sequences(number, numbers + t),
            tl.load(sums + first + t),
            tl.load(rests + first + t),
        )
        if ADJOINT:
            kept = own == 0
            values = gated(x, z, x_l, z_l, row, c, length, p) * tl.exp2(sum_ + rest)[:, None]
        else:
            kept = own == last
            values = rows_of(x, x_l, row, c, length, p).to(tl.float32)
            values *= (tl.load(steps + first + t) * decays(sum_, rest, last_sum, last_rest))[
                :, None
            ]
        values = tl.where(kept[:, None], values, 0.0)
        b = tl.where(kept[:, None], rows_of(B, B_l, row, i, length, n), 0.0)
        total = exact_product(tl.trans(operand(b, PRECISION)), values, total, PRECISION)
    states += ((batch * chunks + chunk) * heads + head) * n * p
    here = (i < n)[:, None] & (c < p)[None, :]
    tl.store(states + i[:, None] * p + c[None, :], total, mask=here)


@triton.jit
def pass_kernel(
    states, sums, rests, number, initial, final, heads, chunks, p, n,
    REVERSE: tl.constexpr, T: tl.constexpr, AHEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What each chunk adds becomes, in place, the state before it; REVERSE: the gradient of the state after it.

    initial and final (b h p n) are what comes in and what goes out. AHEAD chunks are read before they are needed.
    """
    head, batch = tl.program_id(0) % heads, (tl.program_id(0) // heads).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = at < n * p
    outside = (batch * heads + head) * n * p + at % p * n + at // p
    state = tl.zeros((BLOCK,), tl.float32)
    if initial is not None:
        state = tl.load(initial + outside, mask=here, other=0.0)
    for first in range(0, chunks, AHEAD):
        added, kept, crossed = (), (), ()
        for k in tl.static_range(AHEAD):  # behind the last chunk nothing is added, and all is kept
            there = first + k < chunks
            chunk = chunks - 1 - first - k if REVERSE else first + k
            to = states + ((batch * chunks + chunk) * heads + head) * n * p + at
            added = added + (tl.load(to, mask=here & there, other=0.0),)
            end = ((batch * heads + head) * chunks + chunk) * T + T - 1
            log = tl.load(sums + end, mask=there, other=0.0)
            kept = kept + (tl.exp2(log + tl.load(rests + end, mask=there, other=0.0)),)
            if number is not None:
                end = (batch * chunks + chunk) * T + T - 1
                crossed = crossed + (tl.load(number + end, mask=there, other=0) == 0,)
        for k in tl.static_range(AHEAD):
            there = first + k < chunks
            chunk = chunks - 1 - first - k if REVERSE else first + k
            to = states + ((batch * chunks + chunk) * heads + head) * n * p + at
            tl.store(to, state, mask=here & there)
            state = kept[k] * state
            if number is not None:
                state = tl.where(crossed[k], state, 0.0)
            state += added[k]
    if final is not None:
        tl.store(final + outside, state, mask=here)


@triton.jit
def scores_kernel(
    a, b, scores, a_b, a_l, b_b, b_l, length, groups, chunks, n, UPPER: tl.constexpr, PRECISION: tl.constexpr,
    T: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """a[row] . b[column] for pairs of steps of a chunk: (b chunks g T T), in tiles of M on one side of the diagonal."""
    batch, chunk, group = place(tl.program_id(0), groups, chunks, T // M)
    down, across = tl.program_id(0) % (T // M), tl.program_id(1)
    if (across >= down) if UPPER else (across <= down):
        at, to = down * M + tl.arange(0, M), across * M + tl.arange(0, M)
        a += batch * a_b + group * n
        b += batch * b_b + group * n
        total = tl.zeros((M, M), tl.float32)
        for k in range(0, n, N):
            i = k + tl.arange(0, N)
            left = operand(rows_of(a, a_l, chunk * T + at, i, length, n), PRECISION)
            right = operand(rows_of(b, b_l, chunk * T + to, i, length, n), PRECISION)
            total = product(left, tl.trans(right), total, PRECISION)
        scores += ((batch * chunks + chunk) * groups + group) * T * T
        out = scores + at[:, None] * T + to[None, :]
        tl.store(out, total.to(scores.dtype.element_ty))


@triton.jit
def _output(
    index, x, z, C, D, dy, scores, steps, sums, rests, number, states, out, marks, x_b, x_l, z_b, z_l,
    C_b, C_l, dy_b, dy_l, length, heads, chunks, per_group, p, n, CAREFUL: tl.constexpr, BY_CHANNEL: tl.constexpr,
    PRECISION: tl.constexpr, T: tl.constexpr, M: tl.constexpr, K: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    batch, chunk, head = place(index, heads, chunks, T // M)
    tile = index % (T // M)
    c, m = tl.arange(0, P), tile * M + tl.arange(0, M)
    start = chunk * T
    row = start + m
    x += batch * x_b + head * p
    C += batch * C_b + head // per_group * n
    states += ((batch * chunks + chunk) * heads + head) * n * p
    scores += ((batch * chunks + chunk) * (heads // per_group) + head // per_group) * T * T
    first, numbers = ((batch * heads + head) * chunks + chunk) * T, (batch * chunks + chunk) * T
    y = tl.zeros((M, P), tl.float32)
    for k in range(0, n, N):
        i = k + tl.arange(0, N)
        c_t = operand(rows_of(C, C_l, row, i, length, n), PRECISION)
        y = product(c_t, operand(state_block(states, i, c, n, p), PRECISION), y, PRECISION)
    own = sequences(number, numbers + m)
    edge = tl.exp2(tl.load(sums + first + m) + tl.load(rests + first + m))
    y = tl.where((own == 0)[:, None], edge[:, None] * y, 0.0)
    for j in range(0, (tile + 1) * M, K):
        s = j + tl.arange(0, K)
        reached = s[None, :] <= m[:, None]
        if number is not None:
            reached = reached & (own[:, None] == sequences(number, numbers + s)[None, :])
        weights = tl.load(scores + m[:, None] * T + s[None, :]).to(tl.float32)
        weights *= weights_of(sums, rests, steps, first + m, first + s, first + tile * M, PRECISION)
        weights = operand(tl.where(reached, weights, 0.0), PRECISION)
        values = rows_of(x, x_l, start + s, c, length, p)
        if CAREFUL:
            finite, bad = clean(values)
            y = product(weights, operand(finite, PRECISION), y, PRECISION)
            y = spoiled(y, reached, bad, PRECISION)
        else:
            y = product(weights, operand(values, PRECISION), y, PRECISION)
    if not CAREFUL:
        tl.store(marks + index, any_infinite(y).to(tl.int32))
    if D is not None:
        skip = tl.load(D + head * p + c, mask=c < p, other=0.0) if BY_CHANNEL else tl.load(D + head)
        y += skip * rows_of(x, x_l, row, c, length, p).to(tl.float32)
    if z is not None:
        gate = rows_of(z + batch * z_b + head * p, z_l, row, c, length, p).to(tl.float32)
        opened = sigmoid(gate)
        if dy is not None:
            arrived = rows_of(dy + batch * dy_b + head * p, dy_l, row, c, length, p).to(tl.float32)
            y = arrived * y * opened * (1.0 + gate * (1.0 - opened))
        else:
            y *= gate * opened
    here = (row < length)[:, None] & (c < p)[None, :]
    out += ((batch * length + row) * heads + head)[:, None] * p + c[None, :]
    tl.store(out, y.to(out.dtype.element_ty), mask=here)


@triton.jit
def output_kernel(
    x, z, C, D, dy, scores, steps, sums, rests, number, states, out, marks, x_b, x_l, z_b, z_l, C_b, C_l, dy_b, dy_l,
    length, heads, chunks, per_group, p, n, count, CAREFUL: tl.constexpr, BY_CHANNEL: tl.constexpr,
    PRECISION: tl.constexpr, T: tl.constexpr, M: tl.constexpr, K: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """y of M steps, `out` (b l h p); with dy, instead, the gradient of z. `scores` are C[t] . B[s].

    CAREFUL: again, for marked programs: a value that is not finite reaches the later steps of its sequence alone.
    """
    if CAREFUL:
        begin = tl.program_id(0) * 64
        if marked(marks, begin, count):
            for index in range(begin, tl.minimum(begin + 64, count)):
                if tl.load(marks + index) > 0:
                    _output(
                        index, x, z, C, D, dy, scores, steps, sums, rests, number, states, out, marks,
                        x_b, x_l, z_b, z_l, C_b, C_l, dy_b, dy_l, length, heads, chunks, per_group, p, n,
                        True, BY_CHANNEL, PRECISION, T, M, K, P, N,
                    )  # fmt: skip
    else:
        _output(
            tl.program_id(0), x, z, C, D, dy, scores, steps, sums, rests, number, states, out, marks,
            x_b, x_l, z_b, z_l, C_b, C_l, dy_b, dy_l, length, heads, chunks, per_group, p, n,
            False, BY_CHANNEL, PRECISION, T, M, K, P, N,
        )  # fmt: skip
