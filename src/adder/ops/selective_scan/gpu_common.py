"""What the Triton kernels of the selective scan share.

A program is WARPS warps, and its tensors are (WARPS, 32): each thread owns one channel, and what a thread of a CUDA
kernel would keep in an array is a tuple of such tensors. B and C reach the kernels in float32 and in the order in which
they are read, two numbers by one load of 64 bits that all lanes share.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def place(width, groups, blocks, segments, WARPS: tl.constexpr):
    """Batch row, group, segment, block and channels of this program, and which of its channels there are.

    `blocks` programs share the `width` channels of a group.
    """
    block = tl.program_id(0) % (groups * blocks)
    rest = tl.program_id(0) // (groups * blocks)
    group = block // blocks
    lane = tl.arange(0, WARPS)[:, None] * 32 + tl.arange(0, 32)[None, :]
    channel = block % blocks * (WARPS * 32) + lane
    here = channel < width
    return (
        (rest // segments).to(tl.int64),
        group,
        rest % segments,
        block,
        group.to(tl.int64) * width + channel,
        here,
    )


@triton.jit
def load_row(pointer, here, inside, EXACT: tl.constexpr):
    """A row in float32. EXACT: all channels and all steps of the block exist."""
    if EXACT:
        return tl.load(pointer).to(tl.float32)
    else:
        return tl.load(pointer, mask=here & inside, other=0.0).to(tl.float32)


@triton.jit
def store_row(pointer, value, here, inside, EXACT: tl.constexpr):
    value = value.to(pointer.dtype.element_ty)
    if EXACT:
        tl.store(pointer, value)
    else:
        tl.store(pointer, value, mask=here & inside)


@triton.jit
def softplus(x):
    """log(1 + e^x) = max(x, 0) + log1p(e^-|x|), relative error 2e-7 at any x.

    log1p(e) / e on [0, 1] is interpolated at Chebyshev's nodes: 1.3e-7.
    """
    e = tl.exp2(-tl.abs(x) * LOG2E)
    p = -0.0031760570127516985 * e + 0.019542526453733444
    p = p * e - 0.056373611092567444
    p = p * e + 0.10543623566627502
    p = p * e - 0.1526966691017151
    p = p * e + 0.1966327428817749
    p = p * e - 0.24951615929603577
    p = p * e + 0.33329710364341736
    p = p * e - 0.49999892711639404
    p = p * e + 1.0
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + p * e


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def step_size(raw, inside, SOFTPLUS: tl.constexpr, EXACT: tl.constexpr):
    """dt; 0 past the end, where a step then changes nothing."""
    dt = softplus(raw) if SOFTPLUS else raw
    if not EXACT:
        dt = tl.where(inside, dt, 0.0)
    return dt


@triton.jit
def raw_step(pointer, bias, here, inside, EXACT: tl.constexpr):
    return load_row(pointer, here, inside, EXACT) + bias


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
def two_numbers(pointer):
    """Two float32 numbers side by side in memory, by one load."""
    both = tl.load(pointer)
    first = (both & 0xFFFFFFFF).to(tl.uint32).to(tl.float32, bitcast=True)
    second = ((both >> 32) & 0xFFFFFFFF).to(tl.uint32).to(tl.float32, bitcast=True)
    return first, second


@triton.jit
def touch_rows(x, x_l, channel, here, row, length, ROWS: tl.constexpr, WARPS: tl.constexpr):
    """Read a little of each sector of ROWS rows of this program's channels, `row` and those below `length`."""
    lane = tl.broadcast_to(tl.arange(0, 32)[None, :], (WARPS, 32)).to(tl.int64)
    found = tl.zeros([WARPS, 32], tl.float32)
    for first in tl.static_range(0, ROWS, 8):
        at = (row + first + lane % 8) * x_l + channel - lane % 8
        inside = row + first + lane % 8 < length
        found += tl.load(x + at, mask=here & inside, other=0.0).to(tl.float32)
    return found


@triton.jit
def touch_block(x, more, SIZE: tl.constexpr, WARPS: tl.constexpr):
    """Read a little of each sector of SIZE numbers, a power of two, if there are `more`."""
    lane = tl.broadcast_to(tl.arange(0, 32)[None, :], (WARPS, 32))
    found = tl.zeros([WARPS, 32], tl.float32)
    for first in tl.static_range(0, SIZE, 256):
        found += tl.load(x + first + lane * 8 % SIZE, mask=more, other=0.0)
    return found


@triton.jit
def block_inputs(
    u, delta, u_l, delta_l, bias, seq_idx, batch, row, length, here,
    STEPS: tl.constexpr, SOFTPLUS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dt, dt u, u and the starts of packed sequences, for the steps from `row` on."""
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
    return dts, xs, us, starts


@triton.jit
def crossing(x, A2, total):
    """x after it decayed over a segment, `total` being the sum of its steps: inf where a packed sequence starts."""
    return tl.where(total == float("inf"), 0.0, tl.exp2(A2 * total) * x)
