"""The Triton kernels of the selective scan's forward pass; see gpu_common.py for how a program is laid out.

The steps are the outer loop: only states, which do not wait for each other, hide how long an exponential takes. So each
exponential is made one step ahead, and what a program reads next is touched one block of steps ahead.
"""

import triton
import triton.language as tl

from adder.ops.gpu_math import LOG2E, sigmoid
from adder.ops.selective_scan.gpu_common import (
    block_inputs,
    crossing,
    fetched,
    lanes,
    load_channels,
    load_raw,
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
def stage_kernel(
    A, B, C, A2, BC, A_d, A_n, B_b, B_l, B_g, B_n, C_b, C_l, C_g, C_n,
    b, length, d, n, padded_n, groups, chunks,
    STEPS: tl.constexpr, CHUNK: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """B and C (b l g n) to (b g tiles padded_n 2 STEPS) in float32, A (d n) to A2 (padded_n d), zeros past the ends.

    A2 is A log2(e). A program has one chunk, or, after all of them, CHUNK channels of A.
    """
    i = tl.program_id(1) * STATES + tl.arange(0, STATES)[None, :]
    t = tl.arange(0, CHUNK)[:, None]
    group = tl.program_id(0) // chunks % groups
    batch = tl.program_id(0) // chunks // groups
    if batch < b:
        row = (tl.program_id(0) % chunks).to(tl.int64) * CHUNK + t
        here = (row < length) & (i < n)
        B += batch.to(tl.int64) * B_b + group.to(tl.int64) * B_g
        C += batch.to(tl.int64) * C_b + group.to(tl.int64) * C_g
        b_t = tl.load(B + row * B_l + i * B_n, mask=here, other=0.0)
        c_t = tl.load(C + row * C_l + i * C_n, mask=here, other=0.0)
        first = (batch.to(tl.int64) * groups + group) * chunks * CHUNK
        to = BC + ((first + row // STEPS * STEPS) * padded_n + i * STEPS) * 2 + row % STEPS
        tl.store(to, b_t.to(tl.float32), mask=i < padded_n)
        tl.store(to + STEPS, c_t.to(tl.float32), mask=i < padded_n)
    else:
        channel = (tl.program_id(0) - b * groups * chunks).to(tl.int64) * CHUNK + t
        a = tl.load(A + channel * A_d + i * A_n, mask=(channel < d) & (i < n), other=0.0)
        to = A2 + i.to(tl.int64) * d + channel
        tl.store(to, a * LOG2E, mask=(channel < d) & (i < padded_n))


@triton.jit
def states_of(pointer, at, d, here, BLOCK: tl.constexpr):
    """BLOCK states, or their A2, of each channel."""
    states = ()
    for _ in tl.static_range(BLOCK):
        states = states + (tl.load(pointer + at, mask=here, other=0.0),)
        at += d
    return states


@triton.jit
def store_states(pointer, states, at, d, here, n, BLOCK: tl.constexpr):
    """Those of BLOCK states that are among the first n."""
    for i in tl.static_range(BLOCK):
        tl.store(pointer + at, states[i], mask=here & (i < n))
        at += d


@triton.jit
def advance(
    hs, a2s, own_dts, own_xs, seq_idx, starts, projection, row_size, OUTPUT: tl.constexpr,
    LANES: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """BLOCK states over STEPS steps, and with OUTPUT their C . h. `projection` is B and C of the first step."""
    outputs, decays = (), ()
    dt = fetched(own_dts, 0, LANES, STEPS, WARPS)
    for i in tl.static_range(BLOCK):
        decays = decays + (tl.exp2(dt * a2s[i]),)
    for t in tl.static_range(STEPS):
        bc = read_numbers(projection + t * row_size, 2 * BLOCK)
        if t + 1 < STEPS:
            dt = fetched(own_dts, t + 1, LANES, STEPS, WARPS)
        x = fetched(own_xs, t, LANES, STEPS, WARPS)
        y = x * 0.0
        following, after = (), ()
        for i in tl.static_range(BLOCK):
            if t + 1 < STEPS:
                following = following + (tl.exp2(dt * a2s[i]),)
            h = tl.fma(decays[i], restarted(hs[i], seq_idx, starts, t), x * bc[2 * i])
            after = after + (h,)
            if OUTPUT:
                y = bc[1] * h if i == 0 else tl.fma(bc[2 * i + 1], h, y)
        hs, decays = after, following
        if OUTPUT:
            outputs = outputs + (y,)
    return hs, outputs


@triton.jit
def ends_kernel(
    u, delta, A2, BC, bias, seq_idx, ends, totals, u_b, u_l, delta_b, delta_l,
    length, d, width, groups, blocks, segments, segment_steps, padded,
    SOFTPLUS: tl.constexpr, EXACT: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
    STEPS: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """The state at the end of each segment but the last, from a state of zero, and the sum of its steps."""
    batch, group, segment, _, channel, here = place(
        width, groups, blocks, segments - 1, WARPS, LANES
    )
    SIZE: tl.constexpr = 2 * LANES * BLOCK
    part = lanes(WARPS) // (32 // LANES)
    at = channel + (part * BLOCK).to(tl.int64) * d
    a2s = states_of(A2, at, d, here, BLOCK)
    bias_here = load_channels(bias, channel, here)
    u += batch * u_b + channel
    delta += batch * delta_b + channel
    BC += (batch * groups + group) * padded * SIZE
    row = segment.to(tl.int64) * segment_steps
    total = tl.zeros([WARPS * 32], tl.float32)
    seen, pending = total, (total, total, total)
    hs = ()
    for _i in tl.static_range(BLOCK):
        hs = hs + (total,)
    for _k in range(segment_steps // STEPS):
        for stream in tl.static_range(3):
            seen = tl.maximum(seen, pending[stream])
        following = row + STEPS
        pending = (
            touch_rows(u, u_l, following, length, here, LANES, STEPS, WARPS),
            touch_rows(delta, delta_l, following, length, here, LANES, STEPS, WARPS),
            touch_block(BC + following * SIZE, following < length, STEPS * SIZE, WARPS),
        )
        own_dts, us = block_inputs(
            u, delta, u_l, delta_l, bias_here, row, length, here, SOFTPLUS, EXACT, LANES, STEPS, WARPS
        )  # fmt: skip
        own_xs = times(own_dts, us)
        starts = starts_among(seq_idx, batch, row, length, STEPS)
        turns: tl.constexpr = min(LANES, STEPS)
        for q in tl.static_range(STEPS // turns):
            total += own_dts[q]
        if seq_idx is not None:
            total = tl.where(starts != 0, float("inf"), total)
        projection = BC + row * SIZE + part * (2 * BLOCK)
        hs = advance(
            hs, a2s, own_dts, own_xs, seq_idx, starts, projection, SIZE, False, LANES, BLOCK, STEPS, WARPS
        )[0]  # fmt: skip
        row += STEPS
    total = over_lanes(total, min(LANES, STEPS), LANES, WARPS)
    place_of_segment = batch * segments + segment
    store_states(ends + place_of_segment * LANES * BLOCK * d, hs, at, d, here, BLOCK, BLOCK)
    tl.store(totals + place_of_segment * d + channel, total, mask=here)
    tl.store(
        totals + channel, seen, mask=length < 0
    )  # never, but for this the touching is not left out


@triton.jit
def forward_kernel(
    u, delta, z, A2, BC, D, bias, state, seq_idx, ends, totals, y, last, saved,
    u_b, u_l, delta_b, delta_l, z_b, z_l,
    length, d, width, groups, blocks, segments, segment_steps, padded, n, chunks,
    SOFTPLUS: tl.constexpr, EXACT: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
    BLOCK: tl.constexpr, STEPS: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """y, and the last state (b n d); with `saved`, the state before each chunk.

    h[t] = 2^(dt[t] A2) h[t-1] + dt[t] u[t] B[t]        y[t] = (C[t] . h[t] + D u[t]) silu(z[t])
    """
    batch, group, segment, _, channel, here = place(width, groups, blocks, segments, WARPS, LANES)
    SIZE: tl.constexpr = 2 * LANES * BLOCK
    first = lanes(WARPS) // (32 // LANES) * BLOCK  # of the states of this lane
    at = channel + first.to(tl.int64) * d
    a2s = states_of(A2, at, d, here, BLOCK)
    hs = ()
    for i in tl.static_range(BLOCK):
        if state is None:
            h = tl.zeros([WARPS * 32], tl.float32)
        else:
            given = state + (batch * d + channel) * n + first + i
            h = tl.load(given, mask=here & (first + i < n), other=0.0)
        if ends is not None:
            for s in range(segment):
                before = batch * segments + s
                total = tl.load(totals + before * d + channel, mask=here, other=0.0)
                end = ends + (before * LANES * BLOCK + i) * d + at
                h = crossing(h, a2s[i], total) + tl.load(end, mask=here, other=0.0)
        hs = hs + (h,)

    bias_here = load_channels(bias, channel, here)
    D_here = load_channels(D, channel, here)
    row = segment.to(tl.int64) * segment_steps
    u += batch * u_b + channel
    delta += batch * delta_b + channel
    y += batch * length * d + channel
    if z is not None:
        z += batch * z_b + channel
    BC += (batch * groups + group) * padded * SIZE
    seen = tl.zeros([WARPS * 32], tl.float32)
    pending = (seen, seen, seen)
    for _ in range(tl.cdiv(tl.minimum(segment_steps, length - row), STEPS)):
        for stream in tl.static_range(3):
            seen = tl.maximum(seen, pending[stream])
        following = row + STEPS
        pending = (
            touch_rows(u, u_l, following, length, here, LANES, STEPS, WARPS),
            touch_rows(delta, delta_l, following, length, here, LANES, STEPS, WARPS),
            touch_block(BC + following * SIZE, following < length, STEPS * SIZE, WARPS),
        )
        own_dts, us = block_inputs(
            u, delta, u_l, delta_l, bias_here, row, length, here, SOFTPLUS, EXACT, LANES, STEPS, WARPS
        )  # fmt: skip
        own_xs = times(own_dts, us)
        starts = starts_among(seq_idx, batch, row, length, STEPS)
        if saved is not None:
            if row % CHUNK == 0:
                to = saved + (batch * chunks + row // CHUNK) * n * d
                store_states(to, hs, at, d, here, n - first, BLOCK)
        gates = ()
        if z is not None:
            for q in tl.static_range(STEPS // min(LANES, STEPS)):
                step = row + own_step(q, LANES, STEPS, WARPS)
                gates = gates + (load_raw(z + step * z_l, here, step < length, EXACT),)
        projection = BC + row * SIZE + 2 * first
        hs, outputs = advance(
            hs, a2s, own_dts, own_xs, seq_idx, starts, projection, SIZE, True, LANES, BLOCK, STEPS, WARPS
        )  # fmt: skip
        ys = own_sums(outputs, LANES, STEPS, WARPS)
        turns: tl.constexpr = min(LANES, STEPS)
        for q in tl.static_range(STEPS // turns):
            step = row + own_step(q, LANES, STEPS, WARPS)
            y_q = ys[q] if D is None else tl.fma(us[q], D_here, ys[q])
            if z is not None:
                gate = gates[q].to(tl.float32)
                y_q = y_q * gate * sigmoid(gate)
            store_row(y + step * d, y_q, here, step < length, EXACT)
        row += STEPS
    if segment == segments - 1:
        store_states(last + batch * n * d, hs, at, d, here, n - first, BLOCK)
    # Never, but for this the touching is not left out.
    tl.store(y, seen.to(y.dtype.element_ty), mask=here & (length < 0))
