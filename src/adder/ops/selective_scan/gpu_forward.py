"""The Triton kernels of the selective scan's forward pass; see gpu_common.py for how a program is laid out.

The states of a channel are in registers, BLOCK of them: the steps are the outer loop, as nothing but states that do
not wait for each other hides how long an exponential takes. What a program reads next is touched one block of steps
ahead, so that it lies in the first-level cache when it is needed.
"""

import triton
import triton.language as tl

from adder.ops.selective_scan.gpu_common import (
    LOG2E,
    block_inputs,
    crossing,
    load_channels,
    load_row,
    place,
    restarted,
    sigmoid,
    store_row,
    touch_block,
    touch_rows,
    two_numbers,
)


@triton.jit
def stage_kernel(
    A, B, C, A2, BC, A_d, A_n, B_b, B_l, B_g, B_n, C_b, C_l, C_g, C_n,
    b, length, d, n, padded_n, groups, chunks,
    STEPS: tl.constexpr, CHUNK: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """B and C (b l g n) to (b g tiles padded_n 2 STEPS) in float32, A (d n) to A2 (padded_n d), zeros past the ends.

    A program has one chunk, or, after all of them, CHUNK channels of A.
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
    """Those of BLOCK states that come before the n-th."""
    for i in tl.static_range(BLOCK):
        tl.store(pointer + at, states[i], mask=here & (i < n))
        at += d


@triton.jit
def advance(
    hs, a2s, dts, xs, ys, seq_idx, starts, projection, row_size,
    OUTPUT: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """BLOCK states over STEPS steps, and with OUTPUT what they add to y. `projection` is B, C of the first step."""
    outputs, decays = (), ()
    for i in tl.static_range(BLOCK):
        decays = decays + (tl.exp2(dts[0] * a2s[i]),)
    for t in tl.static_range(STEPS):
        following, after = (), ()
        if OUTPUT:
            y = ys[t]
        for i in tl.static_range(BLOCK):
            b, c = two_numbers(projection + t * row_size + i)
            if t + 1 < STEPS:
                following = following + (tl.exp2(dts[t + 1] * a2s[i]),)
            h = tl.fma(decays[i], restarted(hs[i], seq_idx, starts, t), xs[t] * b)
            after = after + (h,)
            if OUTPUT:
                y = tl.fma(c, h, y)
        hs, decays = after, following
        if OUTPUT:
            outputs = outputs + (y,)
    return hs, outputs


@triton.jit
def ends_kernel(
    u, delta, A2, BC, bias, seq_idx, ends, totals, u_b, u_l, delta_b, delta_l,
    length, d, padded_n, width, groups, blocks, segments, segment_steps, tiles,
    SOFTPLUS: tl.constexpr, EXACT: tl.constexpr, STEPS: tl.constexpr, WARPS: tl.constexpr,
    BLOCK: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """The state at the end of each segment but the last, from a state of zero, and the sum of its steps."""
    batch, group, segment, _, channel, here = place(width, groups, blocks, segments - 1, WARPS)
    bias_here = load_channels(bias, channel, here)
    row = segment.to(tl.int64) * segment_steps
    u += batch * u_b
    delta += batch * delta_b
    ends += (batch * segments + segment) * padded_n * d
    BC += (batch * groups + group) * tiles * 2 * padded_n
    total = tl.zeros([WARPS, 32], tl.float32)
    touched = tl.zeros([WARPS, 32], tl.float32)
    pending = (touched, touched, touched)
    if ALL:
        a2s = states_of(A2, channel, d, here, BLOCK)
        hs = ()
        for t in tl.static_range(BLOCK):
            hs = hs + (tl.zeros([WARPS, 32], tl.float32),)
    for k in range(segment_steps // STEPS):
        for stream in tl.static_range(3):
            touched = tl.maximum(touched, pending[stream])
        steps, following = BC + row * 2 * padded_n, row + STEPS
        pending = (
            touch_rows(u, u_l, channel, here, following, length, STEPS, WARPS),
            touch_rows(delta, delta_l, channel, here, following, length, STEPS, WARPS),
            touch_block(steps + STEPS * 2 * padded_n, following < length, STEPS * 2 * BLOCK, WARPS),
        )
        dts, xs, _us, starts = block_inputs(
            u + row * u_l + channel, delta + row * delta_l + channel, u_l, delta_l, bias_here,
            seq_idx, batch, row, length, here, STEPS, SOFTPLUS, EXACT,
        )  # fmt: skip
        for t in tl.static_range(STEPS):
            total += dts[t]
        if seq_idx is not None:
            total = tl.where(starts != 0, float("inf"), total)
        two = steps.to(tl.pointer_type(tl.int64))
        if ALL:
            hs = advance(
                hs, a2s, dts, xs, dts, seq_idx, starts, two, BLOCK, False, BLOCK, STEPS
            )[0]  # fmt: skip
        else:
            at = channel
            for _ in range(padded_n // BLOCK):
                some = states_of(ends, at, d, here & (k > 0), BLOCK)
                a2s = states_of(A2, at, d, here, BLOCK)
                some = advance(
                    some, a2s, dts, xs, dts, seq_idx, starts, two, padded_n, False, BLOCK, STEPS
                )[0]
                store_states(ends, some, at, d, here, BLOCK, BLOCK)
                at += d * BLOCK
                two += BLOCK
        row += STEPS
    if ALL:
        store_states(ends, hs, channel, d, here, BLOCK, BLOCK)
    tl.store(totals + (batch * segments + segment) * d + channel, total, mask=here)
    tl.store(totals + channel, touched, mask=here & (length < 0))


@triton.jit
def forward_kernel(
    u, delta, z, A2, BC, D, bias, state, seq_idx, ends, totals, carry, y, last, saved,
    u_b, u_l, delta_b, delta_l, z_b, z_l,
    length, d, n, padded_n, width, groups, blocks, segments, segment_steps, tiles, chunks,
    SOFTPLUS: tl.constexpr, EXACT: tl.constexpr, STEPS: tl.constexpr, CHUNK: tl.constexpr,
    WARPS: tl.constexpr, BLOCK: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """y, and the last state; with `saved`, the state before each chunk.

        h[t] = 2^(dt[t] A2) h[t-1] + dt[t] u[t] B[t]        y[t] = (C[t] . h[t] + D u[t]) silu(z[t])

    ALL: BLOCK holds all states. Else a block of steps takes BLOCK of them at a time, and `carry`
    (b segments padded_n d) holds them between two blocks of steps.
    """
    batch, group, segment, _, channel, here = place(width, groups, blocks, segments, WARPS)
    carry += (batch * segments + segment) * padded_n * d
    at = channel
    for i in range(padded_n):
        if state is None:
            h = tl.zeros([WARPS, 32], tl.float32)
        else:
            h = tl.load(state + (batch * d + channel) * n + i, mask=here & (i < n), other=0.0)
        if ends is not None:
            a2 = tl.load(A2 + at, mask=here, other=0.0)
            for s in range(segment):
                before = batch * segments + s
                total = tl.load(totals + before * d + channel, mask=here, other=0.0)
                end = tl.load(ends + before * padded_n * d + at, mask=here, other=0.0)
                h = crossing(h, a2, total) + end
        tl.store(carry + at, h, mask=here)
        at += d

    bias_here = load_channels(bias, channel, here)
    D_here = load_channels(D, channel, here)
    row = segment.to(tl.int64) * segment_steps
    u += batch * u_b
    delta += batch * delta_b
    y += (batch * length + row) * d + channel
    if z is not None:
        z += batch * z_b
    BC += (batch * groups + group) * tiles * 2 * padded_n
    touched = tl.zeros([WARPS, 32], tl.float32)
    pending = (touched, touched, touched, touched)
    if ALL:
        hs = states_of(carry, channel, d, here, BLOCK)
        a2s = states_of(A2, channel, d, here, BLOCK)
    for _ in range(tl.cdiv(tl.minimum(segment_steps, length - row), STEPS)):
        for stream in tl.static_range(4):
            touched = tl.maximum(touched, pending[stream])
        steps, following = BC + row * 2 * padded_n, row + STEPS
        z_touched = touched
        if z is not None:
            z_touched = touch_rows(z, z_l, channel, here, following, length, STEPS, WARPS)
        pending = (
            touch_rows(u, u_l, channel, here, following, length, STEPS, WARPS),
            touch_rows(delta, delta_l, channel, here, following, length, STEPS, WARPS),
            z_touched,
            touch_block(steps + STEPS * 2 * padded_n, following < length, STEPS * 2 * BLOCK, WARPS),
        )
        dts, xs, us, starts = block_inputs(
            u + row * u_l + channel, delta + row * delta_l + channel, u_l, delta_l, bias_here,
            seq_idx, batch, row, length, here, STEPS, SOFTPLUS, EXACT,
        )  # fmt: skip
        ys = ()
        for t in tl.static_range(STEPS):
            ys = ys + (tl.zeros([WARPS, 32], tl.float32) if D is None else us[t] * D_here,)
        two = steps.to(tl.pointer_type(tl.int64))
        if saved is not None:
            to = saved + (batch * chunks + row // CHUNK) * n * d
        if ALL:
            if saved is not None:
                if row % CHUNK == 0:
                    store_states(to, hs, channel, d, here, n, BLOCK)
            hs, ys = advance(
                hs, a2s, dts, xs, ys, seq_idx, starts, two, BLOCK, True, BLOCK, STEPS
            )  # fmt: skip
        else:
            at = channel
            for j in range(padded_n // BLOCK):
                some = states_of(carry, at, d, here, BLOCK)
                a2s = states_of(A2, at, d, here, BLOCK)
                if saved is not None:
                    if row % CHUNK == 0:
                        store_states(to, some, at, d, here, n - j * BLOCK, BLOCK)
                some, ys = advance(
                    some, a2s, dts, xs, ys, seq_idx, starts, two, padded_n, True, BLOCK, STEPS
                )
                store_states(carry, some, at, d, here, BLOCK, BLOCK)
                at += d * BLOCK
                two += BLOCK
        z_t = z if z is None else z + row * z_l + channel
        for t in tl.static_range(STEPS):
            inside = row + t < length
            y_t = ys[t]
            if z is not None:
                gate = load_row(z_t, here, inside, EXACT)
                y_t = y_t * gate * sigmoid(gate)
                z_t += z_l
            store_row(y, y_t, here, inside, EXACT)
            y += d
        row += STEPS
    if ALL:
        store_states(carry, hs, channel, d, here, BLOCK, BLOCK)
    if segment == segments - 1:
        at = channel
        for i in range(n):
            h = tl.load(carry + at, mask=here, other=0.0)
            tl.store(last + (batch * d + channel) * n + i, h, mask=here)
            at += d
    tl.store(carry + channel, touched, mask=here & (length < 0))
