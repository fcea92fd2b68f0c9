"""The Triton kernels of the selective scan's backward pass; see gpu_common.py for how a program is laid out.

With q[t] = dy[t] silu(z[t]), g[t] = a[t] dh[t] and a[t] = e^(dt[t] A), from the end:

    dh[t] = C[t] q[t] + g[t+1]      w[t] = g[t] h[t-1]      (README.md names the rest)

The states are the outer loop: a block of steps of one state, h and a, is what fits in registers. dB and dC are sums
over channels, which lie across lanes: each lane has 2 STEPS numbers, and after four exchanges of ever fewer one number
that is a sum over lanes. Nothing is added in an order that changes.
"""

import triton
import triton.language as tl

from adder.ops.gpu_math import LN2, sigmoid
from adder.ops.selective_scan.gpu_common import (
    all_fetched,
    block_inputs,
    crossing,
    from_lane,
    halved,
    lanes,
    load_channels,
    load_row,
    over_lanes,
    own_step,
    own_sums,
    place,
    read_numbers,
    restarted,
    starts_among,
    store_row,
    times,
    touch_block,
    touch_rows,
)


@triton.jit
def opened(
    dy, z, dy_l, z_l, row, length, here,
    EXACT: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """q, what reaches C . h + D u, of the steps from `row` on that a lane works out."""
    qs = ()
    for turn in tl.static_range(STEPS // LANES):
        step = row + own_step(turn, LANES, STEPS, WARPS)
        q = load_row(dy + step * dy_l, here, step < length, EXACT)
        if z is not None:
            gate = load_row(z + step * z_l, here, step < length, EXACT)
            q = q * gate * sigmoid(gate)
        qs = qs + (q,)
    return qs


@triton.jit
def adjoint_ends_kernel(
    delta, dy, z, A2, BC, bias, seq_idx, ends, totals,
    delta_b, delta_l, dy_b, dy_l, z_b, z_l,
    length, d, width, groups, blocks, segments, segment_steps, padded, padded_n,
    SOFTPLUS: tl.constexpr, EXACT: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr,
    WARPS: tl.constexpr,
):  # fmt: skip
    """g at the start of each segment but the first, from zero after its end, and the sum of its steps."""
    batch, group, segment, _, channel, here = place(
        width, groups, blocks, segments - 1, WARPS, LANES
    )
    segment += 1
    part = (lanes(WARPS) // (32 // LANES)).to(tl.int64)
    bias_here = load_channels(bias, channel, here)
    first = segment.to(tl.int64) * segment_steps
    after = tl.minimum(segment_steps, length - first)
    row = first + tl.cdiv(after, STEPS) * STEPS
    delta += batch * delta_b + channel
    dy += batch * dy_b + channel
    if z is not None:
        z += batch * z_b + channel
    ends += (batch * segments + segment) * padded_n * d
    BC += (batch * groups + group) * padded * padded_n * 2
    total = tl.zeros([WARPS * 32], tl.float32)
    for k in range(tl.cdiv(after, STEPS)):
        row -= STEPS
        own_dts, _unused = block_inputs(
            delta, delta, delta_l, delta_l, bias_here, row, length, here, SOFTPLUS, EXACT, LANES, STEPS, WARPS
        )  # fmt: skip
        own_qs = opened(dy, z, dy_l, z_l, row, length, here, EXACT, LANES, STEPS, WARPS)
        dts = all_fetched(own_dts, LANES, STEPS, WARPS)
        qs = all_fetched(own_qs, LANES, STEPS, WARPS)
        starts = starts_among(seq_idx, batch, row, length, STEPS)
        for t in tl.static_range(STEPS):
            total += dts[t]
        if seq_idx is not None:
            total = tl.where(starts != 0, float("inf"), total)
        at, projection = channel + part * d, BC + row * padded_n * 2 + part * (2 * STEPS)
        for _ in range(padded_n // LANES):
            a2 = tl.load(A2 + at, mask=here, other=0.0)
            g = tl.load(ends + at, mask=here & (k > 0), other=0.0)
            cs = read_numbers(projection + STEPS, STEPS)
            for t in tl.static_range(STEPS - 1, -1, -1):
                g = restarted(tl.exp2(dts[t] * a2) * tl.fma(cs[t], qs[t], g), seq_idx, starts, t)
            tl.store(ends + at, g, mask=here)
            at += LANES * d
            projection += LANES * 2 * STEPS
    tl.store(totals + (batch * segments + segment) * d + channel, total, mask=here)


@triton.jit
def summed_over_channels(values, LANES: tl.constexpr, WARPS: tl.constexpr):
    """The sums of 8 numbers over the channels of a program, where bit 8 of a lane has been summed over before."""
    lane = lanes(WARPS)
    values = halved(values, lane, 4, WARPS)
    values = halved(values, lane, 2, WARPS)
    values = halved(values, lane, 1, WARPS)
    total = values[0]
    if LANES == 1:
        total += from_lane(total, lane ^ 16, WARPS)
    return tl.sum(tl.reshape(total, (WARPS, 32)), 0)


@triton.jit
def enter_chunk(
    u, delta, u_l, delta_l, A2, BC, bias, seq_idx, batch, source, middle, channel, part,
    row, count, length, d, n, padded_n, here,
    SOFTPLUS: tl.constexpr, EXACT: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr,
    WARPS: tl.constexpr,
):  # fmt: skip
    """The states after each of the first `count` blocks of a chunk, from those before it: `source` to `middle`."""
    for _m in range(count):
        own_dts, us = block_inputs(
            u, delta, u_l, delta_l, bias, row, length, here, SOFTPLUS, EXACT, LANES, STEPS, WARPS
        )  # fmt: skip
        dts = all_fetched(own_dts, LANES, STEPS, WARPS)
        xs = all_fetched(times(own_dts, us), LANES, STEPS, WARPS)
        starts = starts_among(seq_idx, batch, row, length, STEPS)
        at, projection = channel + part * d, BC + row * padded_n * 2 + part * (2 * STEPS)
        i = part
        h_next = tl.load(source + at, mask=here & (i < n), other=0.0)
        a_next = tl.load(A2 + at, mask=here, other=0.0)
        for _ in range(padded_n // LANES):
            # What the next states need is read one turn ahead. `source` has n states, A2 has those that pad, too.
            h, a2 = h_next, a_next
            i += LANES
            h_next = tl.load(source + at + LANES * d, mask=here & (i < n), other=0.0)
            a_next = tl.load(A2 + at + LANES * d, mask=here & (i < padded_n), other=0.0)
            bs = read_numbers(projection, STEPS)
            for t in tl.static_range(STEPS):
                h = tl.fma(tl.exp2(dts[t] * a2), restarted(h, seq_idx, starts, t), xs[t] * bs[t])
            tl.store(middle + at, h, mask=here)
            at += LANES * d
            projection += LANES * 2 * STEPS
        source = middle
        middle += (row * 0 + padded_n) * d
        row += STEPS


@triton.jit
def adjoint_kernel(
    u, delta, z, A2, BC, D, bias, seq_idx, saved, dy, dlast, ends, totals,
    middle, carry, du, ddelta, dz, dstate, dA, partial, dD, dbias,
    u_b, u_l, delta_b, delta_l, z_b, z_l, dy_b, dy_l,
    length, d, width, groups, blocks, segments, segment_steps, padded, padded_n, n, chunks,
    SOFTPLUS: tl.constexpr, EXACT: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
    STEPS: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """Every gradient. Those of parameters are of one segment of one batch row, those of B and C of one block.

    `carry` and dA (b segments padded_n d) hold g and the gradient of A between two blocks of steps, `middle`
    (b segments CHUNK/STEPS-1 padded_n d) the states inside a chunk; `partial` is (b blocks tiles padded_n 2 STEPS).
    """
    batch, group, segment, block, channel, here = place(
        width, groups, blocks, segments, WARPS, LANES
    )
    lane = lanes(WARPS)
    part = (lane // (32 // LANES)).to(tl.int64)
    place_of_segment = batch * segments + segment
    size = (place_of_segment * 0 + padded_n) * d  # of all states
    carry += place_of_segment * size
    dA += place_of_segment * size
    middle += place_of_segment * (CHUNK // STEPS - 1) * size
    at = channel + part * d
    i = part
    for _ in range(padded_n // LANES):
        g = tl.zeros([WARPS * 32], tl.float32)
        if dlast is not None:
            g = tl.load(dlast + (batch * d + channel) * n + i, mask=here & (i < n), other=0.0)
        if ends is not None:
            a2 = tl.load(A2 + at, mask=here, other=0.0)
            for s in range(segments - 1 - segment):
                later = batch * segments + segments - 1 - s
                total = tl.load(totals + later * d + channel, mask=here, other=0.0)
                end = tl.load(ends + later * size + at, mask=here, other=0.0)
                g = crossing(g, a2, total) + end
        tl.store(carry + at, g, mask=here)
        tl.store(dA + at, tl.zeros([WARPS * 32], tl.float32), mask=here)
        at += LANES * d
        i += LANES

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
    BC += (batch * groups + group) * padded * padded_n * 2
    which = tl.arange(0, 32)
    partial += (batch * groups * blocks + block) * padded * padded_n * 2 + which
    sum_D = tl.zeros([WARPS * 32], tl.float32)
    sum_bias = tl.zeros([WARPS * 32], tl.float32)
    seen, pending = sum_D, (sum_D, sum_D, sum_D, sum_D, sum_D)
    for k in range(tl.cdiv(after, STEPS)):
        row -= STEPS
        for stream in tl.static_range(5):
            seen = tl.maximum(seen, pending[stream])
        earlier = tl.maximum(row - STEPS, 0)
        z_touched = seen
        if z is not None:
            z_touched = touch_rows(z, z_l, earlier, length, here, LANES, STEPS, WARPS)
        pending = (
            touch_rows(u, u_l, earlier, length, here, LANES, STEPS, WARPS),
            touch_rows(delta, delta_l, earlier, length, here, LANES, STEPS, WARPS),
            touch_rows(dy, dy_l, earlier, length, here, LANES, STEPS, WARPS),
            z_touched,
            touch_block(BC + earlier * padded_n * 2, padded_n >= 16, 256, WARPS),
        )
        inner = row % CHUNK // STEPS  # which block of its chunk this is
        before = saved + (batch * chunks + row // CHUNK) * n * d
        stored = n
        if (inner > 0) & ((k == 0) | (inner == CHUNK // STEPS - 1)):
            # A chunk is entered from its end: the states inside it are computed once, for its other blocks too.
            enter_chunk(
                u, delta, u_l, delta_l, A2, BC, bias_here, seq_idx, batch, before, middle, channel, part,
                row - inner * STEPS, inner, length, d, n, padded_n, here,
                SOFTPLUS, EXACT, LANES, STEPS, WARPS,
            )  # fmt: skip
        if inner > 0:
            before = middle + (inner - 1) * size
            stored = padded_n

        own_dts, us = block_inputs(
            u, delta, u_l, delta_l, bias_here, row, length, here, SOFTPLUS, EXACT, LANES, STEPS, WARPS
        )  # fmt: skip
        own_qs = opened(dy, z, dy_l, z_l, row, length, here, EXACT, LANES, STEPS, WARPS)
        dts = all_fetched(own_dts, LANES, STEPS, WARPS)
        xs = all_fetched(times(own_dts, us), LANES, STEPS, WARPS)
        qs = all_fetched(own_qs, LANES, STEPS, WARPS)
        starts = starts_among(seq_idx, batch, row, length, STEPS)
        by_A, by_B, ys = (), (), ()
        for _t in tl.static_range(STEPS):
            by_A = by_A + (tl.zeros([WARPS * 32], tl.float32),)
            by_B = by_B + (tl.zeros([WARPS * 32], tl.float32),)
            ys = ys + (tl.zeros([WARPS * 32], tl.float32),)
        at, projection = channel + part * d, BC + row * padded_n * 2 + part * (2 * STEPS)
        to = partial + row * padded_n * 2
        i = part
        h_next = tl.load(before + at, mask=here & (i < stored), other=0.0)
        a_next = tl.load(A2 + at, mask=here, other=0.0)
        g_next = tl.load(carry + at, mask=here, other=0.0)
        sum_next = tl.load(dA + at, mask=here, other=0.0)
        for _ in range(padded_n // LANES):
            h, a2, g, sum_A = h_next, a_next, g_next, sum_next
            i += LANES
            more = here & (i < padded_n)
            h_next = tl.load(before + at + LANES * d, mask=here & (i < stored), other=0.0)
            a_next = tl.load(A2 + at + LANES * d, mask=more, other=0.0)
            g_next = tl.load(carry + at + LANES * d, mask=more, other=0.0)
            sum_next = tl.load(dA + at + LANES * d, mask=more, other=0.0)
            bc = read_numbers(projection, 2 * STEPS)
            decays, hs, y_after = (), (h,), ()
            for t in tl.static_range(STEPS):
                decays = decays + (tl.exp2(dts[t] * a2),)
                h = tl.fma(decays[t], restarted(h, seq_idx, starts, t), xs[t] * bc[t])
                hs = hs + (h,)
                if z is not None:
                    y_after = y_after + (tl.fma(bc[STEPS + t], h, ys[t]),)
            if z is not None:
                ys = y_after
            # From the last step to the first: tuples grow at their front.
            A_after, B_after, sums = (), (), ()
            for t in tl.static_range(STEPS - 1, -1, -1):
                dh = tl.fma(bc[STEPS + t], qs[t], g)
                g = decays[t] * dh
                w = restarted(g * hs[t], seq_idx, starts, t)
                g = restarted(g, seq_idx, starts, t)
                sum_A = tl.fma(w, dts[t], sum_A)
                A_after = (tl.fma(w, a2, by_A[t]),) + A_after
                B_after = (tl.fma(dh, bc[t], by_B[t]),) + B_after
                sums = halved((dh * xs[t], qs[t] * hs[t + 1]), lane, STEPS, WARPS) + sums
            by_A, by_B = A_after, B_after
            tl.store(carry + at, g, mask=here)
            tl.store(dA + at, sum_A, mask=here)
            tl.store(to, summed_over_channels(sums, LANES, WARPS), mask=which < LANES * 2 * STEPS)
            at += LANES * d
            projection += LANES * 2 * STEPS
            to += LANES * 2 * STEPS
        by_A = own_sums(by_A, LANES, STEPS, WARPS)
        by_B = own_sums(by_B, LANES, STEPS, WARPS)
        ys = own_sums(ys, LANES, STEPS, WARPS)
        for turn in tl.static_range(STEPS // LANES):
            step = row + own_step(turn, LANES, STEPS, WARPS)
            inside = step < length
            to_row = (batch * length + step) * d + channel
            by_u = own_dts[turn] * by_B[turn]
            if D is not None:
                by_u = tl.fma(own_qs[turn], D_here, by_u)
                sum_D = tl.fma(own_qs[turn], us[turn], sum_D)
            by_step = tl.fma(us[turn], by_B[turn], by_A[turn] * LN2)
            if SOFTPLUS:
                by_step *= sigmoid(
                    load_row(delta + step * delta_l, here, inside, EXACT) + bias_here
                )
            if not EXACT:
                by_step = tl.where(inside, by_step, 0.0)
            sum_bias += by_step
            store_row(du + to_row, by_u, here, inside, EXACT)
            store_row(ddelta + to_row, by_step, here, inside, EXACT)
            if z is not None:
                gate = load_row(z + step * z_l, here, inside, EXACT)
                part_open = sigmoid(gate)
                y = ys[turn] if D is None else tl.fma(us[turn], D_here, ys[turn])
                by_z = load_row(dy + step * dy_l, here, inside, EXACT) * y * part_open
                store_row(dz + to_row, by_z * (1.0 + gate * (1.0 - part_open)), here, inside, EXACT)
    mine = here & (part == 0)
    if D is not None:
        sum_D = over_lanes(sum_D, LANES, LANES, WARPS)
        tl.store(dD + place_of_segment * d + channel, sum_D, mask=mine)
    if bias is not None:
        sum_bias = over_lanes(sum_bias, LANES, LANES, WARPS)
        tl.store(dbias + place_of_segment * d + channel, sum_bias, mask=mine)
    if dstate is not None:
        if segment == 0:
            at = channel + part * d
            i = part
            for _ in range(padded_n // LANES):
                g = tl.load(carry + at, mask=here, other=0.0)
                tl.store(dstate + (batch * d + channel) * n + i, g, mask=here & (i < n))
                at += LANES * d
                i += LANES
    tl.store(
        carry + channel, seen, mask=length < 0
    )  # never, but for this the touching is not left out


@triton.jit
def sum_kernel(
    partial,
    dB,
    dC,
    length,
    n,
    padded_n,
    groups,
    blocks,
    tiles,
    STEPS: tl.constexpr,
    STATES: tl.constexpr,
):
    """dB and dC (b l g n) from their sums over each block of channels (b g blocks tiles padded_n 2 STEPS)."""
    tile = (tl.program_id(0) % tiles).to(tl.int64)
    group = (tl.program_id(0) // tiles % groups).to(tl.int64)
    batch = (tl.program_id(0) // tiles // groups).to(tl.int64)
    which = tl.arange(0, 2 * STEPS)[None, :]
    i = tl.program_id(1) * STATES + tl.arange(0, STATES)[:, None]
    at = partial + ((batch * groups + group) * blocks * tiles + tile) * padded_n * 2 * STEPS
    at += i * 2 * STEPS + which
    between = (tile * 0 + tiles) * padded_n * 2 * STEPS
    total = tl.zeros([STATES, 2 * STEPS], tl.float32)
    for _ in range(blocks):
        total += tl.load(at, mask=i < n, other=0.0)
        at += between
    t = tile * STEPS + which % STEPS
    to = ((batch * length + t) * groups + group) * n + i
    here = (t < length) & (i < n)
    tl.store(dB + to, total.to(dB.dtype.element_ty), mask=here & (which < STEPS))
    tl.store(dC + to, total.to(dC.dtype.element_ty), mask=here & (which >= STEPS))
