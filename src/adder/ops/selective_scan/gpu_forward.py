"""The Triton kernels of the selective scan's forward pass; see gpu_common.py for how a program is laid out."""

import triton
import triton.language as tl

from adder.ops.selective_scan.gpu_common import (
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
    two_steps,
)


@triton.jit
def transpose_kernel(
    B, C, BT, CT, B_b, B_l, B_g, B_n, C_b, C_l, C_g, C_n,
    length, padded, n, groups, tiles, STEPS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """B and C (b l g n) to (b g n padded), float32, with zeros past the end."""
    tile = tl.program_id(0) % tiles
    group = (tl.program_id(0) // tiles % groups).to(tl.int64)
    batch = (tl.program_id(0) // tiles // groups).to(tl.int64)
    t = (tile * STEPS + tl.arange(0, STEPS)).to(tl.int64)[None, :]
    i = (tl.program_id(1) * STATES + tl.arange(0, STATES)).to(tl.int64)[:, None]
    here = (t < length) & (i < n)
    b = tl.load(B + batch * B_b + group * B_g + t * B_l + i * B_n, mask=here, other=0.0)
    c = tl.load(C + batch * C_b + group * C_g + t * C_l + i * C_n, mask=here, other=0.0)
    to = ((batch * groups + group) * n + i) * padded + t
    written = (t < padded) & (i < n)
    tl.store(BT + to, b.to(tl.float32), mask=written)
    tl.store(CT + to, c.to(tl.float32), mask=written)


@triton.jit
def block_inputs(
    u, delta, u_l, delta_l, bias, seq_idx, batch, row, length, here,
    STEPS: tl.constexpr, SOFTPLUS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dt, dt u, u and the starts of packed sequences, for the steps from `row` on; and the rows after them."""
    dts, xs, us = (), (), ()
    starts = starts_among(seq_idx, batch, row, length, STEPS)
    for t in tl.static_range(STEPS):
        inside = row + t < length
        dt = step_size(raw_step(delta, bias, here, inside, EXACT), inside, SOFTPLUS, EXACT)
        u_t = load_row(u, here, inside, EXACT)
        u += u_l
        delta += delta_l
        dts = dts + (dt,)
        xs = xs + (dt * u_t,)
        us = us + (u_t,)
    return dts, xs, us, starts, u, delta


@triton.jit
def ends_kernel(
    u, delta, A2, BT, bias, seq_idx, ends, totals, u_b, u_l, delta_b, delta_l,
    length, padded, d, n, width, groups, blocks, segments, segment_steps,
    SOFTPLUS: tl.constexpr, EXACT: tl.constexpr, STEPS: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """The state at the end of each segment but the last, from a state of zero, and the sum of its steps."""
    batch, group, segment, _, channel, here = place(width, groups, blocks, segments - 1, WARPS)
    bias_here = load_channels(bias, channel, here)
    row = segment.to(tl.int64) * segment_steps
    u += batch * u_b + row * u_l + channel
    delta += batch * delta_b + row * delta_l + channel
    state = ends + (batch * segments + segment) * n * d
    projection = (batch * groups + group) * n * padded
    B2 = BT.to(tl.pointer_type(tl.int64))
    total = tl.zeros([WARPS, 32], tl.float32)
    for k in range(segment_steps // STEPS):
        dts, xs, _, starts, u, delta = block_inputs(
            u,
            delta,
            u_l,
            delta_l,
            bias_here,
            seq_idx,
            batch,
            row,
            length,
            here,
            STEPS,
            SOFTPLUS,
            EXACT,
        )
        for t in tl.static_range(STEPS):
            total += dts[t]
        if seq_idx is not None:
            total = tl.where(starts != 0, float("inf"), total)
        at, steps = channel, (projection + row) // 2
        for _ in range(n):
            a2 = tl.load(A2 + at, mask=here, other=0.0)
            h = tl.load(state + at, mask=here & (k > 0), other=0.0)
            for t in tl.static_range(STEPS):
                if t % 2 == 0:
                    b = two_steps(B2 + steps + t // 2)
                h = tl.exp2(dts[t] * a2) * restarted(h, seq_idx, starts, t) + xs[t] * b[t % 2]
            tl.store(state + at, h, mask=here)
            at += d
            steps += padded // 2
        row += STEPS
    tl.store(totals + (batch * segments + segment) * d + channel, total, mask=here)


@triton.jit
def forward_kernel(
    u, delta, z, A2, BT, CT, D, bias, state, seq_idx, ends, totals, carry, y, last, saved,
    u_b, u_l, delta_b, delta_l, z_b, z_l,
    length, padded, d, n, width, groups, blocks, segments, segment_steps, chunks,
    SOFTPLUS: tl.constexpr, EXACT: tl.constexpr, STEPS: tl.constexpr, CHUNK: tl.constexpr,
    WARPS: tl.constexpr,
):  # fmt: skip
    """y, and the last state; with `saved`, the state before each chunk.

        h[t] = 2^(dt[t] A2) h[t-1] + dt[t] u[t] B[t]        y[t] = (C[t] . h[t] + D u[t]) silu(z[t])

    `carry` (b segments n d) holds the states between two blocks of steps.
    """
    batch, group, segment, _, channel, here = place(width, groups, blocks, segments, WARPS)
    carry += (batch * segments + segment) * n * d
    at = channel
    for i in range(n):
        if state is None:
            h = tl.zeros([WARPS, 32], tl.float32)
        else:
            h = tl.load(state + (batch * d + channel) * n + i, mask=here, other=0.0)
        if ends is not None:
            a2 = tl.load(A2 + at, mask=here, other=0.0)
            for s in range(segment):
                before = batch * segments + s
                total = tl.load(totals + before * d + channel, mask=here, other=0.0)
                end = tl.load(ends + before * n * d + at, mask=here, other=0.0)
                h = crossing(h, a2, total) + end
        tl.store(carry + at, h, mask=here)
        at += d

    bias_here = load_channels(bias, channel, here)
    D_here = load_channels(D, channel, here)
    row = segment.to(tl.int64) * segment_steps
    u += batch * u_b + row * u_l + channel
    delta += batch * delta_b + row * delta_l + channel
    y += (batch * length + row) * d + channel
    if z is not None:
        z += batch * z_b + row * z_l + channel
    projection = (batch * groups + group) * n * padded
    B2 = BT.to(tl.pointer_type(tl.int64))
    C2 = CT.to(tl.pointer_type(tl.int64))
    for _ in range(tl.cdiv(tl.minimum(segment_steps, length - row), STEPS)):
        dts, xs, us, starts, u, delta = block_inputs(
            u,
            delta,
            u_l,
            delta_l,
            bias_here,
            seq_idx,
            batch,
            row,
            length,
            here,
            STEPS,
            SOFTPLUS,
            EXACT,
        )
        ys = ()
        for t in tl.static_range(STEPS):
            ys = ys + (tl.zeros([WARPS, 32], tl.float32) if D is None else us[t] * D_here,)
        at, steps = channel, (projection + row) // 2
        h_next = tl.load(carry + at, mask=here, other=0.0)
        a_next = tl.load(A2 + at, mask=here, other=0.0)
        for i in range(n):
            h, a2 = h_next, a_next
            more = here & (i + 1 < n)
            h_next = tl.load(carry + at + d, mask=more, other=0.0)
            a_next = tl.load(A2 + at + d, mask=more, other=0.0)
            if saved is not None:
                to = saved + (batch * chunks + row // CHUNK) * n * d + at
                tl.store(to, h, mask=here & (row % CHUNK == 0))
            after = ()
            for t in tl.static_range(STEPS):
                if t % 2 == 0:
                    b = two_steps(B2 + steps + t // 2)
                    c = two_steps(C2 + steps + t // 2)
                h = tl.exp2(dts[t] * a2) * restarted(h, seq_idx, starts, t) + xs[t] * b[t % 2]
                after = after + (ys[t] + c[t % 2] * h,)
            ys = after
            tl.store(carry + at, h, mask=here)
            at += d
            steps += padded // 2
        for t in tl.static_range(STEPS):
            inside = row + t < length
            y_t = ys[t]
            if z is not None:
                gate = load_row(z, here, inside, EXACT)
                y_t = y_t * gate * sigmoid(gate)
                z += z_l
            store_row(y, y_t, here, inside, EXACT)
            y += d
        row += STEPS
    if segment == segments - 1:
        at = channel
        for i in range(n):
            h = tl.load(carry + at, mask=here, other=0.0)
            tl.store(last + (batch * d + channel) * n + i, h, mask=here)
            at += d
