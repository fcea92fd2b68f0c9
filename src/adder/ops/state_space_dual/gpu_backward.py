"""The Triton kernels of state space duality's backward pass. The names are those of README.md.

e is added up from float32 products of exact operands, as gradients of A and dt_bias are sums over all steps; what
leaves in the type of the signals is made of rounded operands.
"""

import triton
import triton.language as tl

from adder.ops.state_space_dual.gpu_common import (
    any_infinite,
    clean,
    decays,
    exact_product,
    exact_sums,
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
def edges_kernel(
    x, z, B, C, dy, sums, rests, number, states, after, leaves, enters, whole, dD,
    x_b, x_l, z_b, z_l, B_b, B_l, C_b, C_l, dy_b, dy_l, length, heads, chunks, per_group, p, n,
    PRECISION: tl.constexpr, T: tl.constexpr, M: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """What the borders of a chunk give to M steps: E(s, T) / dt[s] and E(-1, s) (b h chunks T), E(-1, T) (b h chunks);
    and sum_s q[s] x[s] (b chunks tiles h p). `states` are before each chunk, `after` the gradients of those after it.
    """
    batch, chunk, head = place(tl.program_id(0), heads, chunks, T // M)
    tile = tl.program_id(0) % (T // M)
    c, s = tl.arange(0, P), tile * M + tl.arange(0, M)
    row = chunk * T + s
    B += batch * B_b + head // per_group * n
    C += batch * C_b + head // per_group * n
    states += ((batch * chunks + chunk) * heads + head) * n * p
    after += ((batch * chunks + chunk) * heads + head) * n * p
    chunk_of_head = (batch * heads + head) * chunks + chunk
    first, numbers = chunk_of_head * T, (batch * chunks + chunk) * T
    through, entering = tl.zeros((M, P), tl.float32), tl.zeros((M, P), tl.float32)
    met = tl.zeros((N,), tl.float32)
    for k in range(0, n, N):
        i = k + tl.arange(0, N)
        gradient = state_block(after, i, c, n, p)
        b = operand(rows_of(B, B_l, row, i, length, n), PRECISION)
        through = exact_product(b, gradient, through, PRECISION)
        before = state_block(states, i, c, n, p)
        c_s = operand(rows_of(C, C_l, row, i, length, n), PRECISION)
        entering = exact_product(c_s, before, entering, PRECISION)
        met += tl.sum(gradient * before, 1)
    last_sum, last_rest = tl.load(sums + first + T - 1), tl.load(rests + first + T - 1)
    last, own = sequences(number, numbers + T - 1), sequences(number, numbers + s)
    crossing = tl.where(last == 0, tl.exp2(last_sum + last_rest) * tl.sum(met, 0), 0.0)
    tl.store(whole + chunk_of_head, crossing, mask=tile == 0)
    q = gated(dy + batch * dy_b + head * p, None if z is None else z + batch * z_b + head * p,
              dy_l, z_l, row, c, length, p)  # fmt: skip
    values = rows_of(x + batch * x_b + head * p, x_l, row, c, length, p).to(tl.float32)
    sum_, rest = tl.load(sums + first + s), tl.load(rests + first + s)
    e = tl.exp2(sum_ + rest) * tl.sum(entering * q, 1)
    tl.store(enters + first + s, tl.where(own == 0, e, 0.0))
    e = decays(sum_, rest, last_sum, last_rest) * tl.sum(through * values, 1)
    tl.store(leaves + first + s, tl.where(own == last, e, 0.0))
    at = dD + (((batch * chunks + chunk) * (T // M) + tile) * heads + head) * p + c
    tl.store(at, tl.sum(q * values, 0), mask=c < p)


@triton.jit
def _input(
    index, x, z, B, D, dy, scores, steps, sums, rests, number, after, leaves, dx, dx_x, spans, columns, marks,
    x_b, x_l, z_b, z_l, B_b, B_l, dy_b, dy_l, length, heads, chunks, per_group, p, n,
    CAREFUL: tl.constexpr, BY_CHANNEL: tl.constexpr, PRECISION: tl.constexpr, T: tl.constexpr, M: tl.constexpr,
    K: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    batch, chunk, head = place(index, heads, chunks, T // M)
    tile = index % (T // M)
    c, s = tl.arange(0, P), tile * M + tl.arange(0, M)
    start = chunk * T
    row = start + s
    x += batch * x_b + head * p
    dy += batch * dy_b + head * p
    if z is not None:
        z += batch * z_b + head * p
    B += batch * B_b + head // per_group * n
    after += ((batch * chunks + chunk) * heads + head) * n * p
    scores += ((batch * chunks + chunk) * (heads // per_group) + head // per_group) * T * T
    chunk_of_head = (batch * heads + head) * chunks + chunk
    first, numbers = chunk_of_head * T, (batch * chunks + chunk) * T
    columns += (chunk_of_head * (T // M) + tile) * T
    out = tl.zeros((M, P), tl.float32)
    for k in range(0, n, N):
        i = k + tl.arange(0, N)
        b = operand(rows_of(B, B_l, row, i, length, n), PRECISION)
        out = product(b, operand(state_block(after, i, c, n, p), PRECISION), out, PRECISION)
    last_sum, last_rest = tl.load(sums + first + T - 1), tl.load(rests + first + T - 1)
    sum_s, rest_s = tl.load(sums + first + s), tl.load(rests + first + s)
    step, number_s = tl.load(steps + first + s), sequences(number, numbers + s)
    left = number_s == sequences(number, numbers + T - 1)
    out = decays(sum_s, rest_s, last_sum, last_rest)[:, None] * out
    out = tl.where(left[:, None], out, 0.0)
    own = tl.load(
        leaves + first + s
    )  # dX . x; and times the step, E(s, t) summed over the t behind the columns
    leaving = tl.sum(tl.where(left, step * own, 0.0), 0)
    x_s = operand(rows_of(x, x_l, row, c, length, p), PRECISION)
    # Behind the tile: the exponent is a sum from a row to the last one and one from there to a column, of one sign.
    end = first + tile * M + M - 1
    end_sum, end_rest = tl.load(sums + end), tl.load(rests + end)
    to_end = (end_sum - sum_s) + (end_rest - rest_s)
    k = tl.arange(0, K)
    for j in range((tile + 1) * M, T, K):
        t = j + k
        from_end = (tl.load(sums + first + t) - end_sum) + (tl.load(rests + first + t) - end_rest)
        weights = tl.load(scores + s[:, None] * T + t[None, :])
        weights *= tl.exp2(to_end[:, None] + from_end[None, :])
        if number is not None:
            reached = number_s[:, None] == sequences(number, numbers + t)[None, :]
            weights = tl.where(reached, weights, 0.0)
        q_t = gated(dy, z, dy_l, z_l, start + t, c, length, p)
        if CAREFUL:
            finite, bad = clean(q_t)
            out = product(operand(weights, PRECISION), operand(finite, PRECISION), out, PRECISION)
            reached = s[:, None] < t[None, :]
            if number is not None:
                reached = number_s[:, None] == sequences(number, numbers + t)[None, :]
            out = spoiled(out, reached, bad, PRECISION)
        else:
            out = product(operand(weights, PRECISION), operand(q_t, PRECISION), out, PRECISION)
        pairs = tl.zeros((M, K), tl.float32)
        if z is None:
            pairs = product(x_s, tl.trans(operand(q_t, PRECISION)), pairs, PRECISION)
        else:
            pairs = exact_product(x_s, tl.trans(q_t), pairs, PRECISION)
        pairs *= weights
        if number is not None:
            pairs = tl.where(reached, pairs, 0.0)
        own += tl.sum(pairs, 1)
        pairs *= step[:, None]
        if number is not None:
            pairs = tl.where(reached, pairs, 0.0)
        column = tl.sum(pairs, 0) + tl.where(t == T - 1, leaving, 0.0)
        tl.store(columns + t, column)
    behind = operand((k[:, None] >= k[None, :]).to(tl.float32), PRECISION)
    for done in range(0, M, K):  # the rows' own tile, from its last columns on
        t = (tile + 1) * M - K - done + k
        reached = s[:, None] <= t[None, :]
        if number is not None:
            number_t = sequences(number, numbers + t)
            reached = reached & (number_s[:, None] == number_t[None, :])
        log = tl.load(sums + first + t)[None, :] - sum_s[:, None]
        log += tl.load(rests + first + t)[None, :] - rest_s[:, None]
        weights = tl.exp2(log) * tl.load(scores + s[:, None] * T + t[None, :])
        weights = tl.where(reached, weights, 0.0)
        q_t = gated(dy, z, dy_l, z_l, start + t, c, length, p)
        if CAREFUL:
            finite, bad = clean(q_t)
            out = product(operand(weights, PRECISION), operand(finite, PRECISION), out, PRECISION)
            out = spoiled(out, reached, bad, PRECISION)
        else:
            out = product(operand(weights, PRECISION), operand(q_t, PRECISION), out, PRECISION)
        pairs = tl.zeros((M, K), tl.float32)
        if z is None:
            pairs = product(x_s, tl.trans(operand(q_t, PRECISION)), pairs, PRECISION)
        else:
            pairs = exact_product(x_s, tl.trans(q_t), pairs, PRECISION)
        pairs = tl.where(reached, pairs * weights, 0.0)
        over = tl.where(reached, pairs * step[:, None], 0.0)
        over = exact_sums(over, behind, tl.zeros((M, K), tl.float32), PRECISION)
        over += (step * own)[:, None]
        over = tl.where(reached & (s[:, None] < t[None, :]), over, 0.0)
        tl.store(spans + first + t, tl.sum(over, 0))
        own += tl.sum(pairs, 1)
    tl.store(dx_x + first + s, own)
    if not CAREFUL:
        tl.store(marks + index, any_infinite(out).to(tl.int32))
    out *= step[:, None]
    if D is not None:
        at = D + head * p + c
        skip = tl.load(at, mask=c < p, other=0.0) if BY_CHANNEL else tl.load(D + head)
        out += skip * gated(dy, z, dy_l, z_l, row, c, length, p)
    here = (row < length)[:, None] & (c < p)[None, :]
    to = dx + ((batch * length + row) * heads + head)[:, None] * p + c[None, :]
    tl.store(to, out.to(dx.dtype.element_ty), mask=here)


@triton.jit
def input_kernel(
    x, z, B, D, dy, scores, steps, sums, rests, number, after, leaves, dx, dx_x, spans, columns, marks,
    x_b, x_l, z_b, z_l, B_b, B_l, dy_b, dy_l, length, heads, chunks, per_group, p, n, count,
    CAREFUL: tl.constexpr, BY_CHANNEL: tl.constexpr, PRECISION: tl.constexpr, T: tl.constexpr, M: tl.constexpr,
    K: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """dx and dX . x of M steps s, and what makes e: of each r in their tile, E(s, t) summed over s < r <= t, `spans`
    (b h chunks T); of each column t behind, E(s, t) summed over all s, the last with E(s, T) (b h chunks tiles T).
    `after` are the gradients of the states after each chunk, `leaves` E(s, T) / dt[s], `scores` B[s] . C[t].

    CAREFUL: again, for marked programs: a value that is not finite reaches the earlier steps of its sequence alone.
    """
    if CAREFUL:
        begin = tl.program_id(0) * 64
        if marked(marks, begin, count):
            for index in range(begin, tl.minimum(begin + 64, count)):
                if tl.load(marks + index) > 0:
                    _input(
                        index, x, z, B, D, dy, scores, steps, sums, rests, number, after, leaves, dx, dx_x, spans,
                        columns, marks, x_b, x_l, z_b, z_l, B_b, B_l, dy_b, dy_l, length, heads, chunks, per_group, p,
                        n, True, BY_CHANNEL, PRECISION, T, M, K, P, N,
                    )  # fmt: skip
    else:
        _input(
            tl.program_id(0), x, z, B, D, dy, scores, steps, sums, rests, number, after, leaves, dx, dx_x, spans,
            columns, marks, x_b, x_l, z_b, z_l, B_b, B_l, dy_b, dy_l, length, heads, chunks, per_group, p, n,
            False, BY_CHANNEL, PRECISION, T, M, K, P, N,
        )  # fmt: skip


@triton.jit
def pairs_kernel(
    x, z, dy, steps, sums, rests, number, pairs, x_b, x_l, z_b, z_l, dy_b, dy_l,
    length, heads, chunks, per_group, p, blocks, share,
    PRECISION: tl.constexpr, T: tl.constexpr, M: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """G(s, t) of rows t and columns s, summed over `share` heads of a group: (b chunks g blocks T T)."""
    groups = heads // per_group
    batch, chunk, block = place(tl.program_id(0), groups * blocks, chunks, T // M)
    down, across = tl.program_id(0) % (T // M), tl.program_id(1)
    if across <= down:
        c, t, s = tl.arange(0, P), down * M + tl.arange(0, M), across * M + tl.arange(0, M)
        numbers = (batch * chunks + chunk) * T
        reached = s[None, :] <= t[:, None]
        if number is not None:
            number_t, number_s = sequences(number, numbers + t), sequences(number, numbers + s)
            reached = reached & (number_t[:, None] == number_s[None, :])
        total = tl.zeros((M, M), tl.float32)
        begin = block // blocks * per_group + block % blocks * share
        for head in range(begin, tl.minimum(begin + share, (block // blocks + 1) * per_group)):
            first = ((batch * heads + head) * chunks + chunk) * T
            from_z = None if z is None else z + batch * z_b + head * p
            q = gated(dy + batch * dy_b + head * p, from_z, dy_l, z_l, chunk * T + t, c, length, p)
            values = rows_of(x + batch * x_b + head * p, x_l, chunk * T + s, c, length, p)
            each = product(
                operand(q, PRECISION),
                tl.trans(operand(values, PRECISION)),
                tl.zeros((M, M), tl.float32),
                PRECISION,
            )
            total += each * weights_of(
                sums, rests, steps, first + t, first + s, first + down * M, PRECISION
            )
        out = pairs + ((batch * chunks + chunk) * (groups * blocks) + block) * T * T
        out += t[:, None] * T + s[None, :]
        tl.store(out, tl.where(reached, total, 0.0).to(pairs.dtype.element_ty))


@triton.jit
def _projection(
    index, x, z, partner, dy, pairs, steps, sums, rests, number, states, parts, marks, x_b, x_l, z_b, z_l, B_b, B_l,
    dy_b, dy_l, length, heads, chunks, per_group, p, n, blocks, share,
    CAREFUL: tl.constexpr, OF_C: tl.constexpr, PRECISION: tl.constexpr,
    T: tl.constexpr, M: tl.constexpr, K: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    groups, across = heads // per_group, tl.cdiv(n, N)
    tile = index // across % (T // M)
    batch, chunk, block = place(index // across, groups * blocks, chunks, T // M)
    group = block // blocks
    c, m, i = tl.arange(0, P), tile * M + tl.arange(0, M), index % across * N + tl.arange(0, N)
    begin = group * per_group + block % blocks * share
    stop = tl.minimum(begin + share, (group + 1) * per_group)
    partner += batch * B_b + group * n
    pairs += ((batch * chunks + chunk) * (groups * blocks) + block) * T * T
    numbers = (batch * chunks + chunk) * T
    number_m, last = sequences(number, numbers + m), sequences(number, numbers + T - 1)
    kept = number_m == 0 if OF_C else number_m == last
    total = tl.zeros((M, N), tl.float32)
    for head in range(begin, stop):
        first = ((batch * heads + head) * chunks + chunk) * T
        sum_m, rest_m = tl.load(sums + first + m), tl.load(rests + first + m)
        if OF_C:
            from_z = None if z is None else z + batch * z_b + head * p
            own = gated(
                dy + batch * dy_b + head * p, from_z, dy_l, z_l, chunk * T + m, c, length, p
            )
            edge = tl.exp2(sum_m + rest_m)
        else:
            own = rows_of(x + batch * x_b + head * p, x_l, chunk * T + m, c, length, p).to(
                tl.float32
            )
            last_sum, last_rest = tl.load(sums + first + T - 1), tl.load(rests + first + T - 1)
            edge = tl.load(steps + first + m) * decays(sum_m, rest_m, last_sum, last_rest)
        own = operand(tl.where(kept[:, None], own * edge[:, None], 0.0), PRECISION)
        at = states + ((batch * chunks + chunk) * heads + head) * n * p
        h = operand(state_block(at, i, c, n, p), PRECISION)
        total = product(own, tl.trans(h), total, PRECISION)
    total = tl.where(kept[:, None], total, 0.0)
    for k in range(0, (tile + 1) * M if OF_C else T - tile * M, K):
        t = (k if OF_C else T - K - k) + tl.arange(0, K)
        reached = t[None, :] <= m[:, None] if OF_C else t[None, :] >= m[:, None]
        if number is not None:
            number_t = sequences(number, numbers + t)
            reached = reached & (number_m[:, None] == number_t[None, :])
        if OF_C:
            weights = tl.load(pairs + m[:, None] * T + t[None, :], mask=reached, other=0.0)
        else:
            weights = tl.load(pairs + m[:, None] + t[None, :] * T, mask=reached, other=0.0)
        values = rows_of(partner, B_l, chunk * T + t, i, length, n)
        if CAREFUL:
            finite, bad = clean(values)
            total = product(
                operand(weights, PRECISION), operand(finite, PRECISION), total, PRECISION
            )
            total = spoiled(total, reached, bad, PRECISION)
        else:
            total = product(
                operand(weights, PRECISION), operand(values, PRECISION), total, PRECISION
            )
    if not CAREFUL:
        tl.store(marks + index, any_infinite(total).to(tl.int32))
    row = chunk * T + m
    here = (row < length)[:, None] & (i < n)[None, :]
    to = parts + ((batch * groups * blocks + block) * length + row)[:, None] * n + i[None, :]
    tl.store(to, total, mask=here)


@triton.jit
def projection_kernel(
    x, z, partner, dy, pairs, steps, sums, rests, number, states, parts, marks, x_b, x_l, z_b, z_l, B_b, B_l,
    dy_b, dy_l, length, heads, chunks, per_group, p, n, blocks, share, count,
    CAREFUL: tl.constexpr, OF_C: tl.constexpr, PRECISION: tl.constexpr,
    T: tl.constexpr, M: tl.constexpr, K: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """dC (OF_C) or dB of M steps, summed over `share` heads of a group: (b g blocks l n), float32.

    For dC, the partner is B and the states are those before the chunk; for dB, C and the gradients of those after it.
    CAREFUL: again, for marked programs: a partner that is not finite reaches one side of its sequence alone.
    """
    if CAREFUL:
        begin = tl.program_id(0) * 64
        if marked(marks, begin, count):
            for index in range(begin, tl.minimum(begin + 64, count)):
                if tl.load(marks + index) > 0:
                    _projection(
                        index, x, z, partner, dy, pairs, steps, sums, rests, number, states, parts, marks,
                        x_b, x_l, z_b, z_l, B_b, B_l, dy_b, dy_l, length, heads, chunks, per_group, p, n, blocks, share,
                        True, OF_C, PRECISION, T, M, K, P, N,
                    )  # fmt: skip
    else:
        _projection(
            tl.program_id(0), x, z, partner, dy, pairs, steps, sums, rests, number, states, parts, marks,
            x_b, x_l, z_b, z_l, B_b, B_l, dy_b, dy_l, length, heads, chunks, per_group, p, n, blocks, share,
            False, OF_C, PRECISION, T, M, K, P, N,
        )  # fmt: skip


@triton.jit
def finish_kernel(
    spans, columns, enters, whole, dx_x, slopes, steps, A, ddt, dA, dbias, length, heads, chunks,
    T: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """ddt (b l h), and of each chunk (b chunks h) the sums that make dA and the bias's gradient."""
    batch, chunk, head = place(tl.program_id(0), heads, chunks)
    chunk_of_head = (batch * heads + head) * chunks + chunk
    t = T - 1 - tl.arange(0, T)  # from the last step, as sums go
    row, at = chunk * T + t, chunk_of_head * T + t
    inside = row < length
    e = tl.load(spans + at) + tl.cumsum(tl.load(enters + at), 0) + tl.load(whole + chunk_of_head)
    for tile in tl.static_range(T // M - 1):
        behind = t >= (tile + 1) * M
        part = columns + (chunk_of_head * (T // M) + tile) * T + t
        e += tl.where(behind, tl.cumsum(tl.load(part, mask=behind, other=0.0), 0), 0.0)
    slope = tl.load(slopes + at)
    out = e * tl.load(A + head) + tl.load(dx_x + at)
    out = tl.where(slope == 0.0, 0.0, out * slope)
    tl.store(ddt + (batch * length + row) * heads + head, out.to(ddt.dtype.element_ty), mask=inside)
    part = (batch * chunks + chunk) * heads + head
    tl.store(dA + part, tl.sum(tl.where(inside, e * tl.load(steps + at), 0.0), 0))
    tl.store(dbias + part, tl.sum(tl.where(inside, out, 0.0), 0))


@triton.jit
def gather_kernel(parts, out, length, size, groups, blocks, n, BLOCK: tl.constexpr):
    """The sum of parts (b g blocks l n) over the blocks, as `out` (b l g n). `size` is l n, of 64 bits from 2^31 on."""
    tiles = tl.cdiv(size, BLOCK)
    rest, group = tl.program_id(0) // tiles, tl.program_id(0) // tiles % groups
    batch = (rest // groups).to(tl.int64)
    at = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < size
    parts += (batch * groups + group) * blocks * size + at
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(0, blocks):
        total += tl.load(parts, mask=here, other=0.0)
        parts += size
    out += (batch * length + at // n) * groups * n + group * n + at % n
    tl.store(out, total.to(out.dtype.element_ty), mask=here)
