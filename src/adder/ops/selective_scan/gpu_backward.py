"""The Triton kernels of the selective scan's backward pass; see gpu_common.py for how a program is laid out.

With q[t] = dy[t] silu(z[t]), g[t] = a[t] dh[t] and a[t] = e^(dt[t] A), from the end:

    dh[t] = C[t] q[t] + g[t+1]      w[t] = g[t] h[t-1]      (README.md names the rest)

dB and dC are sums over channels, which lie across lanes: of 2 STEPS numbers that each lane holds, it ends with one
that is the sum over all lanes, after five exchanges of ever fewer numbers. Nothing is added in an order that changes.
"""

import triton
import triton.language as tl

from adder.ops.selective_scan.gpu_common import (
    LN2,
    block_inputs,
    crossing,
    load_channels,
    load_row,
    place,
    raw_step,
    restarted,
    sigmoid,
    starts_among,
    step_size,
    store_row,
    two_numbers,
)


@triton.jit
def open_gate(dy, z, here, inside, EXACT: tl.constexpr):
    """q, what reaches C . h + D u."""
    q = load_row(dy, here, inside, EXACT)
    if z is None:
        return q
    else:
        gate = load_row(z, here, inside, EXACT)
        return q * gate * sigmoid(gate)


@triton.jit
def adjoint_ends_kernel(
    delta, dy, z, A2, BC, bias, seq_idx, ends, totals,
    delta_b, delta_l, dy_b, dy_l, z_b, z_l,
    length, d, n, width, groups, blocks, segments, segment_steps, tiles,
    SOFTPLUS: tl.constexpr, EXACT: tl.constexpr, STEPS: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """g at the start of each segment but the first, from zero after its end, and the sum of its steps."""
    batch, group, segment, _, channel, here = place(width, groups, blocks, segments - 1, WARPS)
    segment += 1
    bias_here = load_channels(bias, channel, here)
    first = segment.to(tl.int64) * segment_steps
    after = tl.minimum(segment_steps, length - first)
    row = first + tl.cdiv(after, STEPS) * STEPS
    delta += batch * delta_b + channel
    dy += batch * dy_b + channel
    if z is not None:
        z += batch * z_b + channel
    state = ends + (batch * segments + segment) * n * d
    projections = BC.to(tl.pointer_type(tl.int64)) + (batch * groups + group) * tiles * n * STEPS
    total = tl.zeros([WARPS, 32], tl.float32)
    for k in range(tl.cdiv(after, STEPS)):
        row -= STEPS
        dts, qs = (), ()
        starts = starts_among(seq_idx, batch, row, length, STEPS)
        delta_t, dy_t = delta + row * delta_l, dy + row * dy_l
        z_t = z if z is None else z + row * z_l
        for t in tl.static_range(STEPS):
            inside = row + t < length
            raw = raw_step(delta_t, bias_here, here, inside, EXACT)
            dt = step_size(raw, inside, SOFTPLUS, EXACT)
            dts = dts + (dt,)
            qs = qs + (open_gate(dy_t, z_t, here, inside, EXACT),)
            delta_t += delta_l
            dy_t += dy_l
            z_t = z if z is None else z_t + z_l
            total += dt
        if seq_idx is not None:
            total = tl.where(starts != 0, float("inf"), total)
        at, two = channel, projections + row * n
        for _ in range(n):
            a2 = tl.load(A2 + at, mask=here, other=0.0)
            g = tl.load(state + at, mask=here & (k > 0), other=0.0)
            for t in tl.static_range(STEPS - 1, -1, -1):
                if t % 2 == 1:
                    c = two_numbers(two + STEPS // 2 + t // 2)
                g = tl.exp2(dts[t] * a2) * tl.fma(c[t % 2], qs[t], g)
                g = restarted(g, seq_idx, starts, t)
            tl.store(state + at, g, mask=here)
            at += d
            two += STEPS
    tl.store(totals + (batch * segments + segment) * d + channel, total, mask=here)


@triton.jit
def halved(values, lane, BIT: tl.constexpr):
    """Of each pair (i, i + half) a lane keeps one, the second where its index has the bit, and adds its partner's."""
    half: tl.constexpr = len(values) // 2
    upper = (lane & BIT) != 0
    kept = ()
    for i in tl.static_range(half):
        mine = tl.where(upper, values[i + half], values[i])
        theirs = tl.where(upper, values[i], values[i + half])
        kept = kept + (mine + tl.gather(theirs, lane ^ BIT, 1),)
    return kept


@triton.jit
def summed_over_lanes(values, lane, STEPS: tl.constexpr):
    """Of STEPS numbers in each lane, lane i gets the sum of number i % STEPS, over lanes that share its bit STEPS."""
    if STEPS > 8:
        values = halved(values, lane, 8)
    if STEPS > 4:
        values = halved(values, lane, 4)
    values = halved(values, lane, 2)
    values = halved(values, lane, 1)
    total = values[0]
    if STEPS < 16:
        total += tl.gather(total, lane ^ 16, 1)
    if STEPS < 8:
        total += tl.gather(total, lane ^ 8, 1)
    return total


@triton.jit
def adjoint_kernel(
    u, delta, z, A2, BC, D, bias, seq_idx, saved, dy, dlast, ends, totals,
    middle, carry, du, ddelta, dz, dstate, dA, partial, dD, dbias,
    u_b, u_l, delta_b, delta_l, z_b, z_l, dy_b, dy_l,
    length, d, n, width, groups, blocks, segments, segment_steps, tiles, chunks,
    SOFTPLUS: tl.constexpr, EXACT: tl.constexpr, STEPS: tl.constexpr, CHUNK: tl.constexpr,
    WARPS: tl.constexpr,
):  # fmt: skip
    """Every gradient. Those of parameters are of one segment of one batch row, those of B and C of one block.

    `carry` and dA (b segments n d) hold g and the gradient of A between two blocks of steps, `middle`
    (b segments CHUNK/STEPS-1 n d) the states inside a chunk; `partial` is (b blocks tiles n 2 STEPS).
    """
    batch, group, segment, block, channel, here = place(width, groups, blocks, segments, WARPS)
    place_of_segment = batch * segments + segment
    carry += place_of_segment * n * d
    dA += place_of_segment * n * d
    middle += place_of_segment * (CHUNK // STEPS - 1) * n * d
    at = channel
    for i in range(n):
        if dlast is None:
            g = tl.zeros([WARPS, 32], tl.float32)
        else:
            g = tl.load(dlast + (batch * d + channel) * n + i, mask=here, other=0.0)
        if ends is not None:
            a2 = tl.load(A2 + at, mask=here, other=0.0)
            for s in range(segments - 1 - segment):
                later = batch * segments + segments - 1 - s
                total = tl.load(totals + later * d + channel, mask=here, other=0.0)
                end = tl.load(ends + later * n * d + at, mask=here, other=0.0)
                g = crossing(g, a2, total) + end
        tl.store(carry + at, g, mask=here)
        tl.store(dA + at, tl.zeros([WARPS, 32], tl.float32), mask=here)
        at += d

    bias_here = load_channels(bias, channel, here)
    D_here = load_channels(D, channel, here)
    first = segment.to(tl.int64) * segment_steps
    after = tl.minimum(segment_steps, length - first)
    row = first + tl.cdiv(after, STEPS) * STEPS
    u += batch * u_b + channel
    delta += batch * delta_b + channel
    dy += batch * dy_b + channel
    if z is not None:
        z += batch * z_b + channel
    lane = tl.broadcast_to(tl.arange(0, 32)[None, :], (WARPS, 32))
    which = tl.arange(0, 32)
    partial += (batch * groups * blocks + block) * tiles * n * 2 * STEPS + which
    projections = BC.to(tl.pointer_type(tl.int64)) + (batch * groups + group) * tiles * n * STEPS
    sum_D = tl.zeros([WARPS, 32], tl.float32)
    sum_bias = tl.zeros([WARPS, 32], tl.float32)
    for k in range(tl.cdiv(after, STEPS)):
        row -= STEPS
        inner = row % CHUNK // STEPS  # which block of its chunk this is
        before = saved + (batch * chunks + row // CHUNK) * n * d
        if (inner > 0) & ((k == 0) | (inner == CHUNK // STEPS - 1)):
            # A chunk is entered from its end: the states inside it are computed once, for its other blocks too.
            earlier = row - inner * STEPS
            source = before
            for m in range(inner):
                dts, xs, _us, starts = block_inputs(
                    u + earlier * u_l, delta + earlier * delta_l, u_l, delta_l, bias_here,
                    seq_idx, batch, earlier, length, here, STEPS, SOFTPLUS, EXACT,
                )  # fmt: skip
                at, two = channel, projections + earlier * n
                for _ in range(n):
                    a2 = tl.load(A2 + at, mask=here, other=0.0)
                    h = tl.load(source + at, mask=here, other=0.0)
                    for t in tl.static_range(STEPS):
                        if t % 2 == 0:
                            b = two_numbers(two + t // 2)
                        h = restarted(h, seq_idx, starts, t)
                        h = tl.fma(tl.exp2(dts[t] * a2), h, xs[t] * b[t % 2])
                    tl.store(middle + m * n * d + at, h, mask=here)
                    at += d
                    two += STEPS
                source = middle + m * n * d
                earlier += STEPS
        if inner > 0:
            before = middle + (inner - 1) * n * d

        dts, xs, _us, starts = block_inputs(
            u + row * u_l, delta + row * delta_l, u_l, delta_l, bias_here,
            seq_idx, batch, row, length, here, STEPS, SOFTPLUS, EXACT,
        )  # fmt: skip
        qs, by_A, by_B, ys = (), (), (), ()
        dy_t = dy + row * dy_l
        z_t = z if z is None else z + row * z_l
        for t in tl.static_range(STEPS):
            qs = qs + (open_gate(dy_t, z_t, here, row + t < length, EXACT),)
            dy_t += dy_l
            z_t = z if z is None else z_t + z_l
            by_A = by_A + (tl.zeros([WARPS, 32], tl.float32),)
            by_B = by_B + (tl.zeros([WARPS, 32], tl.float32),)
            ys = ys + (tl.zeros([WARPS, 32], tl.float32),)
        at, two, to = channel, projections + row * n, partial + row * n * 2
        for _ in range(n):
            a2 = tl.load(A2 + at, mask=here, other=0.0)
            h = tl.load(before + at, mask=here, other=0.0)
            g = tl.load(carry + at, mask=here, other=0.0)
            sum_A = tl.load(dA + at, mask=here, other=0.0)
            decays, hs, bs, cs, y_after = (), (h,), (), (), ()
            for pair in tl.static_range(STEPS // 2):
                bs = bs + two_numbers(two + pair)
                cs = cs + two_numbers(two + STEPS // 2 + pair)
            for t in tl.static_range(STEPS):
                decays = decays + (tl.exp2(dts[t] * a2),)
                h = tl.fma(decays[t], restarted(h, seq_idx, starts, t), xs[t] * bs[t])
                hs = hs + (h,)
                if z is not None:
                    y_after = y_after + (tl.fma(cs[t], h, ys[t]),)
            if z is not None:
                ys = y_after
            # From the last step to the first: tuples grow at their front.
            A_after, B_after, sums = (), (), ()
            for t in tl.static_range(STEPS - 1, -1, -1):
                dh = tl.fma(cs[t], qs[t], g)
                g = decays[t] * dh
                w = restarted(g * hs[t], seq_idx, starts, t)
                g = restarted(g, seq_idx, starts, t)
                sum_A = tl.fma(w, dts[t], sum_A)
                A_after = (tl.fma(w, a2, by_A[t]),) + A_after
                B_after = (tl.fma(dh, bs[t], by_B[t]),) + B_after
                sums = halved((dh * xs[t], qs[t] * hs[t + 1]), lane, STEPS) + sums
            by_A, by_B = A_after, B_after
            tl.store(carry + at, g, mask=here)
            tl.store(dA + at, sum_A, mask=here)
            tl.store(to, tl.sum(summed_over_lanes(sums, lane, STEPS), 0), mask=which < 2 * STEPS)
            at += d
            two += STEPS
            to += 2 * STEPS
        u_t, delta_t, dy_t = u + row * u_l, delta + row * delta_l, dy + row * dy_l
        z_t = z if z is None else z + row * z_l
        to = (batch * length + row) * d + channel
        for t in tl.static_range(STEPS):
            inside = row + t < length
            ut = load_row(u_t, here, inside, EXACT)
            by_u = dts[t] * by_B[t]
            if D is not None:
                by_u += D_here * qs[t]
                sum_D += qs[t] * ut
            by_step = by_A[t] * LN2 + ut * by_B[t]
            if SOFTPLUS:
                by_step *= sigmoid(raw_step(delta_t, bias_here, here, inside, EXACT))
            if not EXACT:
                by_step = tl.where(inside, by_step, 0.0)
            sum_bias += by_step
            store_row(du + to, by_u, here, inside, EXACT)
            store_row(ddelta + to, by_step, here, inside, EXACT)
            if z is not None:
                gate = load_row(z_t, here, inside, EXACT)
                opened = sigmoid(gate)
                y = ys[t] if D is None else ys[t] + D_here * ut
                by_z = load_row(dy_t, here, inside, EXACT) * y * opened
                store_row(dz + to, by_z * (1.0 + gate * (1.0 - opened)), here, inside, EXACT)
                z_t += z_l
            u_t += u_l
            delta_t += delta_l
            dy_t += dy_l
            to += d
    if D is not None:
        tl.store(dD + place_of_segment * d + channel, sum_D, mask=here)
    if bias is not None:
        tl.store(dbias + place_of_segment * d + channel, sum_bias, mask=here)
    if (dstate is not None) and (segment == 0):
        at = channel
        for i in range(n):
            g = tl.load(carry + at, mask=here, other=0.0)
            tl.store(dstate + (batch * d + channel) * n + i, g, mask=here)
            at += d


@triton.jit
def sum_kernel(
    partial, dB, dC, length, n, groups, blocks, tiles, STEPS: tl.constexpr, STATES: tl.constexpr
):
    """dB and dC (b l g n) from their sums over each block of channels (b g blocks tiles n 2 STEPS)."""
    tile = (tl.program_id(0) % tiles).to(tl.int64)
    group = (tl.program_id(0) // tiles % groups).to(tl.int64)
    batch = (tl.program_id(0) // tiles // groups).to(tl.int64)
    which = tl.arange(0, 2 * STEPS)[None, :]
    i = tl.program_id(1) * STATES + tl.arange(0, STATES)[:, None]
    at = partial + ((batch * groups + group) * blocks * tiles + tile) * n * 2 * STEPS
    at += i * 2 * STEPS + which
    between = (tile * 0 + tiles) * n * 2 * STEPS
    total = tl.zeros([STATES, 2 * STEPS], tl.float32)
    for _ in range(blocks):
        total += tl.load(at, mask=i < n, other=0.0)
        at += between
    t = tile * STEPS + which % STEPS
    to = ((batch * length + t) * groups + group) * n + i
    here = (t < length) & (i < n)
    tl.store(dB + to, total.to(dB.dtype.element_ty), mask=here & (which < STEPS))
    tl.store(dC + to, total.to(dC.dtype.element_ty), mask=here & (which >= STEPS))
