"""The Triton kernels of the norms.

A program of the forward pass has a few rows of one group of channels, all of each row at once. In the backward pass it
goes on to other rows of its group, and keeps what they add to the gradient of weight in registers. Which rows are whose
depends on the sizes alone, and the programs' parts are summed in their order, so the bits are the same every run.
"""

import triton
import triton.language as tl

from adder.ops.gpu_math import sigmoid

LENGTHS = ["rows", "length", "programs", "turns"]  # another text is no reason to compile again


@triton.jit
def load_tile(x, x_b, x_l, row, rows, length, channel, inside, FLAT: tl.constexpr):
    """A tile as it is stored: row = batch length + step. FLAT: the stride of rows is the same across batches."""
    batch = 0 if FLAT else row // length
    at = batch * tl.cast(x_b, tl.int64) + (row - batch * length) * tl.cast(x_l, tl.int64)
    here = (row < rows)[:, None] & inside[None, :]
    return tl.load(x + at[:, None] + channel[None, :], mask=here, other=0.0)


@triton.jit
def store_tile(x, value, row, rows, d, channel, inside):
    """To a contiguous tensor."""
    here = (row < rows)[:, None] & inside[None, :]
    at = row.to(tl.int64)[:, None] * d + channel[None, :]
    tl.store(x + at, value.to(x.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=LENGTHS)
def forward_kernel(
    y, z, weight, out, y_b, y_l, z_b, z_l, rows, length, d, size, groups, eps,
    BEFORE: tl.constexpr, FLAT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """N(y silu(z)) weight, or with BEFORE N(y) weight silu(z), or without z N(y) weight."""
    i = tl.arange(0, BLOCK)
    inside, channel = i < size, tl.program_id(0) % groups * size + i
    row = tl.program_id(0) // groups * ROWS + tl.arange(0, ROWS)
    v = load_tile(y, y_b, y_l, row, rows, length, channel, inside, FLAT).to(tl.float32)
    w = tl.load(weight + channel, mask=inside, other=0.0)[None, :]
    if z is not None:
        gate = load_tile(z, z_b, z_l, row, rows, length, channel, inside, FLAT).to(tl.float32)
        gate *= sigmoid(gate)
        if not BEFORE:
            v *= gate
    scale = tl.rsqrt(tl.sum(v * v, 1) / size + eps)[:, None]
    v = v * scale * w
    if z is not None:
        if BEFORE:
            v *= gate
    store_tile(out, v, row, rows, d, channel, inside)


@triton.jit
def load_tiles(
    y, z, dout, y_b, y_l, z_b, z_l, dout_b, dout_l, row, rows, length, channel, inside, FLAT: tl.constexpr
):  # fmt: skip
    """y, dout and z, or without z y again, which is then not used."""
    y_tile = load_tile(y, y_b, y_l, row, rows, length, channel, inside, FLAT)
    dout_tile = load_tile(dout, dout_b, dout_l, row, rows, length, channel, inside, FLAT)
    z_tile = y_tile
    if z is not None:
        z_tile = load_tile(z, z_b, z_l, row, rows, length, channel, inside, FLAT)
    return y_tile, dout_tile, z_tile


@triton.jit(do_not_specialize=LENGTHS)
def backward_kernel(
    y, z, weight, dout, dy, dz, parts, y_b, y_l, z_b, z_l, dout_b, dout_l,
    rows, length, d, size, groups, programs, turns, eps,
    BEFORE: tl.constexpr, FLAT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dy, dz, and what the rows of each program add to dweight: parts (programs d).

    With v what is normalised, n = v r, e the gradient of n:  dv = r (e - n mean(e n)), and mean(e n) = r mean(e v).
    The tile of the next turn is asked for before this one's sums, where all warps wait for each other.
    """
    i = tl.arange(0, BLOCK)
    inside, channel = i < size, tl.program_id(0) % groups * size + i
    program = tl.program_id(0) // groups
    w = tl.load(weight + channel, mask=inside, other=0.0)[None, :]
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    following = program * ROWS + tl.arange(0, ROWS)
    y_next, dout_next, z_next = load_tiles(
        y, z, dout, y_b, y_l, z_b, z_l, dout_b, dout_l, following, rows, length, channel, inside, FLAT
    )  # fmt: skip
    for _ in range(turns):
        row = following
        v, g, raw = y_next.to(tl.float32), dout_next.to(tl.float32), z_next.to(tl.float32)
        following = row + programs * ROWS
        y_next, dout_next, z_next = load_tiles(
            y, z, dout, y_b, y_l, z_b, z_l, dout_b, dout_l, following, rows, length, channel, inside, FLAT
        )  # fmt: skip
        scaled = g
        if z is not None:
            first, open = v, sigmoid(raw)
            gate, slope = raw * open, open * (1.0 + raw * (1.0 - open))
            if BEFORE:
                scaled = g * gate
            else:
                v = v * gate
        e = scaled * w
        square, along = tl.split(tl.sum(tl.join(v * v, e * v), 1) / size)
        r = tl.rsqrt(square + eps)[:, None]
        n = v * r
        dv = r * (e - n * (r * along[:, None]))
        total += scaled * n
        if z is not None:
            if BEFORE:
                dgate = g * n * w * slope
            else:
                dgate = dv * first * slope
                dv *= gate
            store_tile(dz, dgate, row, rows, d, channel, inside)
        store_tile(dy, dv, row, rows, d, channel, inside)
    tl.store(parts + program.to(tl.int64) * d + channel, tl.sum(total, 0), mask=inside)
