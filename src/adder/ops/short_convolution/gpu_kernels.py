"""The Triton kernels of the short convolution.

A program has a segment of the length and a block of channels, lanes side by side along the channels. It goes through
the steps with the last k - 1 inputs in registers, a tuple of rows with the newest first, so each input is read once;
the rows of a block of steps are asked for before the first of them is used.
"""

import triton
import triton.language as tl

from adder.ops.gpu_math import LOG2E, sigmoid

LENGTHS = ["length", "segments", "steps"]  # another text is no reason to compile again


@triton.jit
def place(segments, blocks, CHANNELS: tl.constexpr):
    """Batch row and segment of this program, and its channels."""
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    rest = tl.program_id(0) // blocks
    return (rest // segments).to(tl.int64), (rest % segments).to(tl.int64), channel


@triton.jit
def load_taps(weight, weight_d, weight_k, channel, here, K: tl.constexpr):
    """The columns of the weight."""
    taps = ()
    for j in tl.static_range(K):
        taps = taps + (tl.load(weight + j * weight_k + channel * weight_d, mask=here, other=0.0),)
    return taps


@triton.jit
def load_bias(bias, channel, here):
    """Zeros for None."""
    if bias is None:
        return tl.zeros(here.shape, tl.float32)
    else:
        return tl.load(bias + channel, mask=here, other=0.0)


@triton.jit
def input_row(x, x_l, state, t, d, here, K: tl.constexpr):
    """x[t] in float32, or where t < 0 a row of the state, or zeros without one."""
    row = tl.load(x + t * x_l, mask=here & (t >= 0), other=0.0).to(tl.float32)
    if state is not None:
        row += tl.load(state + (t + K - 1) * d, mask=here & (t < 0), other=0.0).to(tl.float32)
    return row


@triton.jit
def starts(seq_idx, t, length):
    """Whether another packed sequence starts at step t."""
    inside = (t > 0) & (t < length)
    here = tl.load(seq_idx + t, mask=inside, other=0)
    return here != tl.load(seq_idx + t - 1, mask=inside, other=0)


@triton.jit
def of_last(seq_idx, t, length):
    """Whether step t < length, or the state where t < 0, belongs to the last packed sequence."""
    if seq_idx is None:
        return t < length
    else:
        there = tl.load(seq_idx + tl.minimum(tl.maximum(t, 0), length - 1))
        return (t < length) & (there == tl.load(seq_idx + length - 1))


@triton.jit
def restarted(window, seq_idx, t, length):
    """The inputs before step t, zeros where a packed sequence starts there."""
    if seq_idx is None:
        return window
    else:
        new = starts(seq_idx, t, length)
        rows = ()
        for j in tl.static_range(len(window)):
            rows = rows + (tl.where(new, 0.0, window[j]),)
        return rows


@triton.jit
def pushed(window, row):
    """The window one step later."""
    rows = ()
    for j in tl.static_range(len(window)):
        rows = rows + (row if j == 0 else window[j - 1],)
    return rows


@triton.jit
def window_before(x, x_l, state, seq_idx, t, length, d, here, K: tl.constexpr):
    """The K - 1 inputs before step t, the newest first."""
    window = ()
    for _ in tl.static_range(K - 1):
        window = window + (tl.zeros(here.shape, tl.float32),)
    for j in tl.static_range(K - 1):
        at = t - (K - 1) + j
        window = restarted(window, seq_idx, at, length)
        window = pushed(window, input_row(x, x_l, state, at, d, here, K))
    return window


@triton.jit
def load_rows(x, x_l, t, length, here, ROWS: tl.constexpr, WHOLE: tl.constexpr):
    """ROWS rows from step t on, as they are stored; WHOLE: none is past the end."""
    rows = ()
    for i in tl.static_range(ROWS):
        if WHOLE:
            rows = rows + (tl.load(x + (t + i) * x_l, mask=here, other=0.0),)
        else:
            rows = rows + (tl.load(x + (t + i) * x_l, mask=here & (t + i < length), other=0.0),)
    return rows


@triton.jit
def combined(row, window, taps, bias, K: tl.constexpr):
    """p = bias + sum_j weight[:, k-1-j] x[t-j]"""
    p = tl.fma(taps[K - 1], row, bias)
    for j in tl.static_range(1, K):
        p = tl.fma(taps[K - 1 - j], window[j - 1], p)
    return p


@triton.jit
def forward_rows(
    window, x, x_l, y, seq_idx, taps, bias, t, length, d, here,
    SILU: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Write y of ROWS steps and return the window after them."""
    raws = load_rows(x, x_l, t, length, here, ROWS, WHOLE)
    for i in tl.static_range(ROWS):
        row = raws[i].to(tl.float32)
        window = restarted(window, seq_idx, t + i, length)
        p = combined(row, window, taps, bias, K)
        if SILU:
            p = p / (1.0 + tl.exp2(-p * LOG2E))
        p = p.to(y.dtype.element_ty)
        if WHOLE:
            tl.store(y + (t + i) * d, p, mask=here)
        else:
            tl.store(y + (t + i) * d, p, mask=here & (t + i < length))
        window = pushed(window, row)
    return window


@triton.jit(do_not_specialize=LENGTHS)
def forward_kernel(
    x, weight, bias, state, seq_idx, y, last, weight_d, weight_k, x_b, x_l, length, d, segments, steps, blocks,
    SILU: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """y (b l d) and the last inputs (b k-1 d); weight (d k) and bias in float32."""
    batch, segment, channel = place(segments, blocks, CHANNELS)
    here = channel < d
    x += batch * x_b + channel
    y += batch * length * d + channel
    last += batch * (K - 1) * d + channel
    if state is not None:
        state += batch * (K - 1) * d + channel
    if seq_idx is not None:
        seq_idx += batch * length
    taps = load_taps(weight, weight_d, weight_k, channel, here, K)
    b = load_bias(bias, channel, here)
    t = segment * steps
    window = window_before(x, x_l, state, seq_idx, t, length, d, here, K)
    count = tl.minimum(steps, length - t).to(tl.int32)
    for _ in range(count // ROWS):
        window = forward_rows(
            window, x, x_l, y, seq_idx, taps, b, t, length, d, here, SILU, K, ROWS, True
        )
        t += ROWS
    if count % ROWS != 0:
        forward_rows(window, x, x_l, y, seq_idx, taps, b, t, length, d, here, SILU, K, ROWS, False)
    if segment == segments - 1:
        for i in tl.static_range(K - 1):
            at = tl.cast(length, tl.int64) - (K - 1) + i
            row = input_row(x, x_l, state, at, d, here & of_last(seq_idx, at, length), K)
            tl.store(last + i * d, row.to(last.dtype.element_ty), mask=here)


@triton.jit
def age_before(seq_idx, t, length, K: tl.constexpr):
    """How many steps before step t - 1 the sequence of step t - 1 began, or K or more."""
    age = t.to(tl.int32) * 0 + K
    if seq_idx is not None:
        for j in tl.static_range(K - 1):
            age = tl.where(starts(seq_idx, t - (K - 1) + j, length), 0, age + 1)
    return age


@triton.jit
def reaching(gradient, seq_idx, age, j: tl.constexpr):
    """The gradient at a step, 0 where the step j before it belongs to another sequence."""
    if seq_idx is None:
        return gradient
    else:
        return tl.where(age >= j, gradient, 0.0)


@triton.jit
def backward_rows(
    window, sums, dtaps, dbias, age, x, x_l, dy, dy_l, dx, dlast, dstate, seq_idx, taps, bias,
    t, end, length, d, here,
    SILU: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, WHOLE: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """ROWS steps of the adjoint: write dx of those K - 1 steps before, or in the HEAD of a segment dstate.

    sums[j] is what has reached dx[t-1-j] so far. WHOLE: all steps are of this segment, and no step before them is
    among the last inputs. Steps after the segment's `end` reach its dx; weight and bias belong to other programs there.
    """
    raws = load_rows(x, x_l, t, length, here, ROWS, WHOLE)
    gradients = load_rows(dy, dy_l, t, length, here, ROWS, WHOLE)
    for i in tl.static_range(ROWS):
        now = t + i
        row, g = raws[i].to(tl.float32), gradients[i].to(tl.float32)
        window = restarted(window, seq_idx, now, length)
        if seq_idx is not None:
            age = tl.where(starts(seq_idx, now, length), 0, age + 1)
        if SILU:
            p = combined(row, window, taps, bias, K)
            s = sigmoid(p)
            g = g * s * (1.0 + p * (1.0 - s))
        counted = g
        if not WHOLE:
            g = tl.where(now < length, g, 0.0)
            counted = tl.where(now < end, g, 0.0)
        dbias += counted
        after = ()
        for m in tl.static_range(K):
            if m == K - 1:
                after = after + (tl.fma(counted, row, dtaps[m]),)
            else:
                after = after + (tl.fma(counted, window[K - 2 - m], dtaps[m]),)
        dtaps = after
        reached = ()
        for j in tl.static_range(K):
            one = taps[K - 1 - j] * reaching(g, seq_idx, age, j)
            if j > 0:
                one += sums[j - 1]
            if j < K - 1:
                reached = reached + (one,)
        sums = reached
        at = now - (K - 1)
        if not WHOLE:
            kept = (at >= length - (K - 1)) & of_last(seq_idx, at, length)
            from_last = dlast + (at - length + K - 1) * d
            one += tl.load(from_last, mask=here & kept, other=0.0).to(tl.float32)
        if HEAD:
            tl.store(dstate + now * d, one.to(dstate.dtype.element_ty), mask=here & (at < 0))
        elif WHOLE:
            tl.store(dx + at * d, one.to(dx.dtype.element_ty), mask=here)
        else:
            tl.store(dx + at * d, one.to(dx.dtype.element_ty), mask=here & (at < end))
        window = pushed(window, row)
    return window, sums, dtaps, dbias, age


@triton.jit(do_not_specialize=LENGTHS)
def backward_kernel(
    x, weight, bias, state, seq_idx, dy, dlast, dx, dstate, parts,
    weight_d, weight_k, x_b, x_l, dy_b, dy_l, length, d, segments, steps, blocks,
    SILU: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dx (b l d), dstate (b k-1 d), and what each segment adds to dweight and dbias, (b segments k+1 d)."""
    batch, segment, channel = place(segments, blocks, CHANNELS)
    here = channel < d
    x += batch * x_b + channel
    dy += batch * dy_b + channel
    dx += batch * length * d + channel
    dlast += batch * (K - 1) * d + channel
    dstate += batch * (K - 1) * d + channel
    if state is not None:
        state += batch * (K - 1) * d + channel
    if seq_idx is not None:
        seq_idx += batch * length
    taps = load_taps(weight, weight_d, weight_k, channel, here, K)
    b = load_bias(bias, channel, here)
    t = segment * steps
    end = tl.minimum(t + steps, length)
    window = window_before(x, x_l, state, seq_idx, t, length, d, here, K)
    age = age_before(seq_idx, t, length, K)
    dbias = tl.zeros([CHANNELS], tl.float32)
    sums, dtaps = (), (dbias,)
    for _ in tl.static_range(K - 1):
        sums = sums + (dbias,)
        dtaps = dtaps + (dbias,)
    if K > 1:
        window, sums, dtaps, dbias, age = backward_rows(
            window, sums, dtaps, dbias, age, x, x_l, dy, dy_l, dx, dlast, dstate, seq_idx, taps, b,
            t, end, length, d, here, SILU, K, K - 1, False, True,
        )  # fmt: skip
        t += K - 1
    for _ in range((tl.maximum(end - t, 0) // ROWS).to(tl.int32)):
        window, sums, dtaps, dbias, age = backward_rows(
            window, sums, dtaps, dbias, age, x, x_l, dy, dy_l, dx, dlast, dstate, seq_idx, taps, b,
            t, end, length, d, here, SILU, K, ROWS, True, False,
        )  # fmt: skip
        t += ROWS
    REST: tl.constexpr = K - 1 if K > 1 else 1
    for _ in range(((end + K - 1 - t + REST - 1) // REST).to(tl.int32)):
        window, sums, dtaps, dbias, age = backward_rows(
            window, sums, dtaps, dbias, age, x, x_l, dy, dy_l, dx, dlast, dstate, seq_idx, taps, b,
            t, end, length, d, here, SILU, K, REST, False, False,
        )  # fmt: skip
        t += REST
    parts += (batch * segments + segment) * (K + 1) * d + channel
    for m in tl.static_range(K):
        tl.store(parts + m * d, dtaps[m], mask=here)
    tl.store(parts + K * d, dbias, mask=here)


@triton.jit(do_not_specialize=["count"])
def sum_kernel(
    parts, dweight, dbias, count, d, K: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """dweight (d k) and dbias (d) from parts (count k+1 d)."""
    m = tl.program_id(1)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    here = channel < d
    total = tl.zeros([PARTS, CHANNELS], tl.float32)
    for first in range(0, count, PARTS):
        part = first + tl.arange(0, PARTS)
        at = (part.to(tl.int64)[:, None] * (K + 1) + m) * d + channel[None, :]
        total += tl.load(parts + at, mask=(part < count)[:, None] & here[None, :], other=0.0)
    summed = tl.sum(total, 0)
    if m < K:
        tl.store(dweight + channel.to(tl.int64) * K + m, summed, mask=here)
    else:
        tl.store(dbias + channel, summed, mask=here)
