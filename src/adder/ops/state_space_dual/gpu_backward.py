"""The Triton kernels of state space duality's backward pass: what remains when states and gradients are passed on.

The names are those of README.md. e is added up from float32 products of exact operands, as gradients of A and dt_bias
are sums over all steps; what leaves in the type of the signals is made of rounded operands.
"""

import triton
import triton.language as tl

from adder.ops.state_space_dual.gpu_common import (
    clean,
    decays,
    exact_product,
    gated,
    operand,
    place,
    product,
    rows_of,
    sequences,
    spoiled,
    state_block,
)


@triton.jit
def input_kernel(
    x, z, B, C, D, dy, steps, sums, rests, number, states, after, dx, e, dx_x, dD, x_b, x_l, z_b, z_l,
    B_b, B_l, C_b, C_l, dy_b, dy_l, length, heads, chunks, per_group, p, n, BY_CHANNEL: tl.constexpr,
    PRECISION: tl.constexpr, T: tl.constexpr, M: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """dx, of each step e and dX . x (b h chunks T), and of each chunk sum_t q[t] x[t] (b chunks h p).

    `states` are those before each chunk, `after` the gradients of those after it. The tiles are M rows s, M columns t.
    """
    batch, chunk, head = place(heads, chunks)
    c = tl.arange(0, P)
    x += batch * x_b + head * p
    dy += batch * dy_b + head * p
    if z is not None:
        z += batch * z_b + head * p
    B += batch * B_b + head // per_group * n
    C += batch * C_b + head // per_group * n
    states += ((batch * chunks + chunk) * heads + head) * n * p
    after += ((batch * chunks + chunk) * heads + head) * n * p
    first = (batch * heads + head) * (chunks * T) + chunk * T
    numbers = batch * (chunks * T) + chunk * T
    last_sum, last_rest = tl.load(sums + first + T - 1), tl.load(rests + first + T - 1)
    last = sequences(number, numbers + T - 1)
    met, skipped = tl.zeros((N,), tl.float32), tl.zeros((P,), tl.float32)
    spanned = ()
    for _ in tl.static_range(T // M):
        spanned = spanned + (tl.zeros((M,), tl.float32),)
    for part in tl.static_range(T // M):
        s = part * M + tl.arange(0, M)
        row = chunk * T + s
        # What comes through the state after the chunk, and what goes into the sums that begin or end at its borders.
        through, entering = tl.zeros((M, P), tl.float32), tl.zeros((M, P), tl.float32)
        for k in range(0, n, N):
            i = k + tl.arange(0, N)
            b = operand(rows_of(B, B_l, row, i, length, n), PRECISION)
            gradient = state_block(after, i, c, n, p)
            through = exact_product(b, gradient, through, PRECISION)
            c_s = operand(rows_of(C, C_l, row, i, length, n), PRECISION)
            before = state_block(states, i, c, n, p)
            entering = exact_product(c_s, before, entering, PRECISION)
            if part == 0:
                met += tl.sum(gradient * before, 1)
        sum_s, rest_s = tl.load(sums + first + s), tl.load(rests + first + s)
        step, number_s = tl.load(steps + first + s), sequences(number, numbers + s)
        left, entered = number_s == last, number_s == 0
        q_s = gated(dy, z, dy_l, z_l, row, c, length, p)
        enters = tl.where(entered, tl.exp2(sum_s + rest_s) * tl.sum(entering * q_s, 1), 0.0)
        x_s = rows_of(x, x_l, row, c, length, p)
        skipped += tl.sum(q_s * x_s.to(tl.float32), 0)
        out = decays(sum_s, rest_s, last_sum, last_rest)[:, None] * through
        out = tl.where(left[:, None], out, 0.0)
        own = tl.where(left, tl.sum(out * x_s.to(tl.float32), 1), 0.0)  # dX . x
        later = tl.where(left, step * own, 0.0)  # E(s, t), summed over the t behind the columns
        x_s = operand(x_s, PRECISION)
        passed = ()
        for column in tl.static_range(T // M - 1, -1, -1):
            if column < part:
                passed = (spanned[column] + tl.sum(enters, 0),) + passed
            else:
                t = column * M + tl.arange(0, M)
                row_t = chunk * T + t
                scores = tl.zeros((M, M), tl.float32)
                for k in range(0, n, N):
                    i = k + tl.arange(0, N)
                    b = operand(rows_of(B, B_l, row, i, length, n), PRECISION)
                    c_t = operand(rows_of(C, C_l, row_t, i, length, n), PRECISION)
                    scores = product(b, tl.trans(c_t), scores, PRECISION)
                reached = s[:, None] <= t[None, :]
                if number is not None:
                    number_t = sequences(number, numbers + t)
                    reached = reached & (number_s[:, None] == number_t[None, :])
                log = tl.load(sums + first + t)[None, :] - sum_s[:, None]
                log += tl.load(rests + first + t)[None, :] - rest_s[:, None]
                weights = tl.exp2(tl.where(reached, log, float("-inf"))) * scores
                weights = tl.where(reached, weights, 0.0)
                q_t = gated(dy, z, dy_l, z_l, row_t, c, length, p)
                finite, bad = clean(q_t)
                out = product(
                    operand(weights, PRECISION), operand(finite, PRECISION), out, PRECISION
                )
                out = spoiled(out, reached, bad, PRECISION)
                pairs = tl.zeros((M, M), tl.float32)
                if z is None:
                    pairs = product(x_s, tl.trans(operand(q_t, PRECISION)), pairs, PRECISION)
                else:
                    pairs = exact_product(x_s, tl.trans(q_t), pairs, PRECISION)
                pairs = tl.where(reached, pairs * weights, 0.0)
                own += tl.sum(pairs, 1)
                pairs = tl.where(reached, pairs * step[:, None], 0.0)
                spans = tl.cumsum(pairs, 1, reverse=True) + later[:, None]
                later += tl.sum(pairs, 1)
                spans = tl.where(t[None, :] > s[:, None], spans, enters[:, None])
                passed = (spanned[column] + tl.sum(spans, 0),) + passed
        spanned = passed
        tl.store(dx_x + first + s, own)
        out *= step[:, None]
        if D is not None:
            at = D + head * p + c
            out += q_s * (tl.load(at, mask=c < p, other=0.0) if BY_CHANNEL else tl.load(D + head))
        here = (row < length)[:, None] & (c < p)[None, :]
        to = dx + ((batch * length + row) * heads + head)[:, None] * p + c[None, :]
        tl.store(to, out.to(dx.dtype.element_ty), mask=here)
    whole = tl.where(last == 0, tl.exp2(last_sum + last_rest) * tl.sum(met, 0), 0.0)
    for part in tl.static_range(T // M):
        tl.store(e + first + part * M + tl.arange(0, M), spanned[part] + whole)
    at = dD + ((batch * chunks + chunk) * heads + head) * p + c
    tl.store(at, skipped, mask=c < p)


@triton.jit
def projection_kernel(
    x, z, partner, dy, steps, sums, rests, number, states, parts, x_b, x_l, z_b, z_l, B_b, B_l, dy_b, dy_l,
    length, heads, chunks, per_group, p, n, blocks, share, OF_C: tl.constexpr, PRECISION: tl.constexpr,
    T: tl.constexpr, M: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """dC of M steps (OF_C) or dB, summed over `share` heads of a group: (b g blocks l n), float32.

    For dC, the partner is B and the states are those before the chunk; for dB, C and the gradients of those after it.
    A program has M rows, and meets all T columns of each head.
    """
    groups = heads // per_group
    batch, chunk, block = place(groups * blocks, chunks, T // M)
    group, start = block // blocks, block % blocks * share
    tile = tl.program_id(0) % (T // M)
    c, m, t = tl.arange(0, P), tile * M + tl.arange(0, M), tl.arange(0, T)
    i = tl.program_id(1) * N + tl.arange(0, N)
    row, column = chunk * T + m, chunk * T + t
    numbers = batch * (chunks * T) + chunk * T
    number_m, number_t = sequences(number, numbers + m), sequences(number, numbers + t)
    last = sequences(number, numbers + T - 1)
    reached = t[None, :] <= m[:, None] if OF_C else t[None, :] >= m[:, None]
    if number is not None:
        reached = reached & (number_m[:, None] == number_t[None, :])
    kept = number_m == 0 if OF_C else number_m == last
    scores, total = tl.zeros((M, T), tl.float32), tl.zeros((M, N), tl.float32)
    stop = tl.minimum(start + share, per_group)
    for k in range(start, stop):
        head = group * per_group + k
        first = (batch * heads + head) * (chunks * T) + chunk * T
        sum_m, rest_m = tl.load(sums + first + m), tl.load(rests + first + m)
        log = tl.load(sums + first + t)[None, :] - sum_m[:, None]
        log += tl.load(rests + first + t)[None, :] - rest_m[:, None]
        log = -log if OF_C else log
        from_x, from_dy = x + batch * x_b + head * p, dy + batch * dy_b + head * p
        from_z = None if z is None else z + batch * z_b + head * p
        if OF_C:
            own = gated(from_dy, from_z, dy_l, z_l, row, c, length, p)
            other = rows_of(from_x, x_l, column, c, length, p)
            weights = tl.load(steps + first + t)[None, :]
            edge = tl.exp2(sum_m + rest_m)
        else:
            own = rows_of(from_x, x_l, row, c, length, p).to(tl.float32)
            other = gated(from_dy, from_z, dy_l, z_l, column, c, length, p)
            step = tl.load(steps + first + m)
            weights = step[:, None]
            last_sum, last_rest = tl.load(sums + first + T - 1), tl.load(rests + first + T - 1)
            edge = step * decays(sum_m, rest_m, last_sum, last_rest)
        pairs = product(
            operand(own, PRECISION),
            tl.trans(operand(other, PRECISION)),
            tl.zeros((M, T), tl.float32),
            PRECISION,
        )
        pairs *= tl.exp2(tl.where(reached, log, float("-inf"))) * weights
        scores += tl.where(reached, pairs, 0.0)
        own = tl.where(kept[:, None], own * edge[:, None], 0.0)
        at = states + ((batch * chunks + chunk) * heads + head) * n * p
        h = operand(state_block(at, i, c, n, p), PRECISION)
        crossing = product(
            operand(own, PRECISION), tl.trans(h), tl.zeros((M, N), tl.float32), PRECISION
        )
        total += tl.where(kept[:, None], crossing, 0.0)
    partner += batch * B_b + group * n
    finite, bad = clean(rows_of(partner, B_l, column, i, length, n))
    total = product(operand(scores, PRECISION), operand(finite, PRECISION), total, PRECISION)
    total = spoiled(total, reached, bad, PRECISION)
    here = (row < length)[:, None] & (i < n)[None, :]
    to = parts + ((batch * groups * blocks + block) * length + row)[:, None] * n + i[None, :]
    tl.store(to, total, mask=here)


@triton.jit
def finish_kernel(
    e, dx_x, slopes, steps, A, ddt, dA, dbias, length, heads, chunks, T: tl.constexpr,
):  # fmt: skip
    """ddt (b l h), and of each chunk (b chunks h) the sums that make dA and the bias's gradient."""
    batch, chunk, head = place(heads, chunks)
    row = chunk * T + tl.arange(0, T)
    inside = row < length
    at = (batch * heads + head) * (chunks * T) + row
    by_A, by_x = tl.load(e + at), tl.load(dx_x + at)
    slope = tl.load(slopes + at)
    out = by_A * tl.load(A + head) + by_x
    out = tl.where(slope == 0.0, 0.0, out * slope)
    to = ddt + (batch * length + row) * heads + head
    tl.store(to, out.to(ddt.dtype.element_ty), mask=inside)
    part = (batch * chunks + chunk) * heads + head
    tl.store(dA + part, tl.sum(tl.where(inside, by_A * tl.load(steps + at), 0.0), 0))
    tl.store(dbias + part, tl.sum(tl.where(inside, out, 0.0), 0))
