"""What the Triton kernels of the selective scan share.

A program is WARPS warps, and its tensors have one element for each thread; what a thread of a CUDA kernel would keep in
an array is a tuple of such tensors. LANES lanes of a warp share a channel: each owns some of its states,
and of LANES steps each works out one, which the others fetch. They are 32 / LANES apart: lane = part (32 / LANES) + c.

B and C reach the kernels in float32 and in the order in which they are read, by loads of 128 bits.
"""

import triton
import triton.language as tl

from adder.ops.gpu_math import softplus


@triton.jit
def lanes(WARPS: tl.constexpr):
    return tl.arange(0, WARPS * 32) % 32


@triton.jit
def from_lane(x, lane, WARPS: tl.constexpr):
    """The x of another lane of the same warp: one shuffle."""
    found = tl.gather(tl.reshape(x, (WARPS, 32)), tl.reshape(lane, (WARPS, 32)), 1)
    return tl.reshape(found, (WARPS * 32,))


@triton.jit
def place(width, groups, blocks, segments, WARPS: tl.constexpr, LANES: tl.constexpr):
    """Batch row, group, segment, block and channels of this program, and which of its channels there are.

    `blocks` programs share the `width` channels of a group.
    """
    block = tl.program_id(0) % (groups * blocks)
    rest = tl.program_id(0) // (groups * blocks)
    group = block // blocks
    each: tl.constexpr = 32 // LANES
    channel = tl.arange(0, WARPS * 32) // 32 * each + lanes(WARPS) % each
    channel += block % blocks * (WARPS * each)
    here = channel < width
    return (
        (rest // segments).to(tl.int64),
        group.to(tl.int64),
        rest % segments,
        block,
        group.to(tl.int64) * width + channel,
        here,
    )


@triton.jit
def load_raw(pointer, here, inside, EXACT: tl.constexpr):
    """A row. EXACT: all channels and all steps of the block exist."""
    if EXACT:
        return tl.load(pointer)
    else:
        return tl.load(pointer, mask=here & inside, other=0.0)


@triton.jit
def load_row(pointer, here, inside, EXACT: tl.constexpr):
    """A row in float32."""
    return load_raw(pointer, here, inside, EXACT).to(tl.float32)


@triton.jit
def store_row(pointer, value, here, inside, EXACT: tl.constexpr):
    value = value.to(pointer.dtype.element_ty)
    if EXACT:
        tl.store(pointer, value)
    else:
        tl.store(pointer, value, mask=here & inside)


@triton.jit
def step_size(raw, inside, SOFTPLUS: tl.constexpr, EXACT: tl.constexpr):
    """dt; 0 past the end, where a step then changes nothing."""
    dt = softplus(raw) if SOFTPLUS else raw
    if not EXACT:
        dt = tl.where(inside, dt, 0.0)
    return dt


@triton.jit
def load_channels(pointer, channel, here):
    """A parameter of each channel, (d); 0 for None."""
    if pointer is None:
        return 0.0
    else:
        return tl.load(pointer + channel, mask=here, other=0.0)


@triton.jit
def starts_among(seq_idx, batch, row, length, STEPS: tl.constexpr):
    """Bit t says whether a packed sequence starts at step row + t: its decay is 0."""
    if seq_idx is None:
        return 0
    else:
        bits = row.to(tl.int32) * 0
        for t in tl.static_range(STEPS):
            at = seq_idx + batch * length + row + t
            inside = (row + t > 0) & (row + t < length)
            here = tl.load(at, mask=inside, other=0)
            before = tl.load(at - 1, mask=inside, other=0)
            bits |= (here != before).to(tl.int32) << t
        return bits


@triton.jit
def restarted(x, seq_idx, starts, t: tl.constexpr):
    """x, but 0 where a packed sequence starts at step t."""
    if seq_idx is None:
        return x
    else:
        return tl.where((starts & (1 << t)) != 0, 0.0, x)


@triton.jit
def both(numbers):
    """The two float32 numbers in 64 bits."""
    first = (numbers & 0xFFFFFFFF).to(tl.uint32).to(tl.float32, bitcast=True)
    second = ((numbers >> 32) & 0xFFFFFFFF).to(tl.uint32).to(tl.float32, bitcast=True)
    return first, second


@triton.jit
def read_numbers(pointer, COUNT: tl.constexpr):
    """COUNT float32 numbers from each of the addresses, four by one load."""
    found = ()
    at = pointer.to(tl.pointer_type(tl.int64))[:, None] + tl.arange(0, 2)[None, :]
    for _ in tl.static_range(COUNT // 4):
        left, right = tl.split(tl.load(at))
        found = found + both(left) + both(right)
        at += 2
    return found


@triton.jit
def own_step(q: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr, WARPS: tl.constexpr):
    """Which step of a block is the q-th of those that a lane works out."""
    turns: tl.constexpr = min(LANES, STEPS)
    return q * turns + lanes(WARPS) // (32 // LANES) % turns


@triton.jit
def fetched(own, t: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr, WARPS: tl.constexpr):
    """Step t of a block, from the lane that worked it out."""
    if LANES == 1:
        return own[t]
    else:
        turns: tl.constexpr = min(LANES, STEPS)
        source = lanes(WARPS) % (32 // LANES) + t % turns * (32 // LANES)
        return from_lane(own[t // turns], source, WARPS)


@triton.jit
def all_fetched(own, LANES: tl.constexpr, STEPS: tl.constexpr, WARPS: tl.constexpr):
    """All steps of a block."""
    rows = ()
    for t in tl.static_range(STEPS):
        rows = rows + (fetched(own, t, LANES, STEPS, WARPS),)
    return rows


@triton.jit
def halved(values, lane, BIT: tl.constexpr, WARPS: tl.constexpr):
    """Of each pair (i, i + half) a lane keeps one, the second where its index has the bit, and adds its partner's."""
    half: tl.constexpr = len(values) // 2
    upper = (lane & BIT) != 0
    kept = ()
    for i in tl.static_range(half):
        mine = tl.where(upper, values[i + half], values[i])
        theirs = tl.where(upper, values[i], values[i + half])
        kept = kept + (mine + from_lane(theirs, lane ^ BIT, WARPS),)
    return kept


@triton.jit
def summed(values, COUNT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, WARPS: tl.constexpr):
    """Sums of COUNT values over lanes that differ in the bits from LOW to HIGH // 2; such a lane gets one of them.

    Read as a number, those bits of a lane say which, modulo COUNT. COUNT is at most HIGH // LOW.
    """
    lane = lanes(WARPS)
    if COUNT > 16:
        values = halved(values, lane, LOW * 16, WARPS)
    if COUNT > 8:
        values = halved(values, lane, LOW * 8, WARPS)
    if COUNT > 4:
        values = halved(values, lane, LOW * 4, WARPS)
    if COUNT > 2:
        values = halved(values, lane, LOW * 2, WARPS)
    if COUNT > 1:
        values = halved(values, lane, LOW, WARPS)
    total = values[0]
    for k in tl.static_range(5):
        if (LOW * COUNT << k) < HIGH:
            total += from_lane(total, lane ^ (LOW * COUNT << k), WARPS)
    return total


@triton.jit
def over_lanes(x, COUNT: tl.constexpr, LANES: tl.constexpr, WARPS: tl.constexpr):
    """The sum of x over the first COUNT of the lanes that share a channel, and their like, in each of them."""
    for k in tl.static_range(5):
        if 1 << k < COUNT:
            x += from_lane(x, lanes(WARPS) ^ (32 // LANES << k), WARPS)
    return x


@triton.jit
def own_sums(rows, LANES: tl.constexpr, STEPS: tl.constexpr, WARPS: tl.constexpr):
    """The sums of STEPS rows over the lanes that share a channel, each lane the steps that it works out."""
    if LANES == 1:
        return rows
    else:
        turns: tl.constexpr = min(LANES, STEPS)
        own = ()
        for q in tl.static_range(STEPS // turns):
            some = ()
            for t in tl.static_range(turns):
                some = some + (rows[q * turns + t],)
            own = own + (summed(some, turns, 32 // LANES, 32, WARPS),)
        return own


@triton.jit
def block_inputs(
    u, delta, u_l, delta_l, bias, row, length, here,
    SOFTPLUS: tl.constexpr, EXACT: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr,
    WARPS: tl.constexpr,
):  # fmt: skip
    """dt and u of the steps from `row` on that a lane works out."""
    dts, us = (), ()
    turns: tl.constexpr = min(LANES, STEPS)
    first = row + own_step(0, LANES, STEPS, WARPS)
    u += first * u_l
    delta += first * delta_l
    for q in tl.static_range(STEPS // turns):
        inside = first + q * turns < length
        raw = load_row(delta, here, inside, EXACT) + bias
        dts = dts + (step_size(raw, inside, SOFTPLUS, EXACT),)
        us = us + (load_row(u, here, inside, EXACT),)
        u += turns * u_l
        delta += turns * delta_l
    return dts, us


@triton.jit
def times(xs, ys):
    products = ()
    for q in tl.static_range(len(xs)):
        products = products + (xs[q] * ys[q],)
    return products


@triton.jit
def touch_rows(
    x, x_l, row, length, here, LANES: tl.constexpr, STEPS: tl.constexpr, WARPS: tl.constexpr
):
    """Read a little of each sector of the rows from `row` on, so that they are in the cache when they are needed."""
    lane = lanes(WARPS)
    found = tl.zeros([WARPS * 32], tl.float32)
    for first in tl.static_range(0, STEPS, 8):
        at = row + first + lane % 8
        back = lane % (32 // LANES) % 8
        found += tl.load(x + at * x_l - back, mask=here & (at < length), other=0.0).to(tl.float32)
    return found


@triton.jit
def touch_block(x, more, SIZE: tl.constexpr, WARPS: tl.constexpr):
    """Read a little of each sector of SIZE numbers, a power of two, if there are `more`."""
    found = tl.zeros([WARPS * 32], tl.float32)
    for first in tl.static_range(0, SIZE, 256):
        found += tl.load(x + first + lanes(WARPS) * 8 % SIZE, mask=more, other=0.0)
    return found


@triton.jit
def crossing(x, A2, total):
    """x after it decayed over a segment, `total` being the sum of its steps: inf where a packed sequence starts."""
    return tl.where(total == float("inf"), 0.0, tl.exp2(A2 * total) * x)
