"""The Triton kernels of the norms.

A program of the forward pass has a few rows of one group of channels, all of each row at once. In the backward pass it
goes on to other rows of its group, and keeps what they add to the gradient of weight in registers. Which rows are whose
depends on the sizes alone, and the programs' parts are summed in their order, so the bits are the same every run.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def place(x, x_b, x_l, row, length, channel):
    """Where the rows of a tile are: row = batch length + step."""
    at = (row // length).to(tl.int64) * x_b + (row % length).to(tl.int64) * x_l
    return x + at[:, None] + channel[None, :]


@triton.jit
def place_of_results(x, row, d, channel):
    """The same in a contiguous tensor."""
    return x + row.to(tl.int64)[:, None] * d + channel[None, :]


@triton.jit
def load(x, here):
    return tl.load(x, mask=here, other=0.0).to(tl.float32)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def forward_kernel(
    y, z, weight, out, y_b, y_l, z_b, z_l, rows, length, d, size, groups, eps,
    BEFORE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """N(y silu(z)) weight, or with BEFORE N(y) weight silu(z), or without z N(y) weight."""
    i = tl.arange(0, BLOCK)
    channel = tl.program_id(0) % groups * size + i
    row = tl.program_id(0) // groups * ROWS + tl.arange(0, ROWS)
    here = (row < rows)[:, None] & (i < size)[None, :]
    v = load(place(y, y_b, y_l, row, length, channel), here)
    w = tl.load(weight + channel, mask=i < size, other=0.0)[None, :]
    if z is not None:
        gate = load(place(z, z_b, z_l, row, length, channel), here)
        gate *= sigmoid(gate)
        if not BEFORE:
            v *= gate
    scale = tl.rsqrt(tl.sum(v * v, 1) / size + eps)[:, None]
    v = v * scale * w
    if z is not None:
        if BEFORE:
            v *= gate
    to = place_of_results(out, row, d, channel)
    tl.store(to, v.to(out.dtype.element_ty), mask=here)


@triton.jit
def backward_kernel(
    y, z, weight, dout, dy, dz, parts, y_b, y_l, z_b, z_l, dout_b, dout_l,
    rows, length, d, size, groups, programs, turns, eps,
    BEFORE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dy, dz, and what the rows of each program add to dweight: parts (programs d).

    With v what is normalised, n = v r, e the gradient of n:  dv = r (e - n mean(e n)).
    """
    i = tl.arange(0, BLOCK)
    channel = tl.program_id(0) % groups * size + i
    program = tl.program_id(0) // groups
    w = tl.load(weight + channel, mask=i < size, other=0.0)[None, :]
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for turn in range(turns):
        row = (turn * programs + program) * ROWS + tl.arange(0, ROWS)
        here = (row < rows)[:, None] & (i < size)[None, :]
        v = load(place(y, y_b, y_l, row, length, channel), here)
        g = load(place(dout, dout_b, dout_l, row, length, channel), here)
        if z is not None:
            first, raw = v, load(place(z, z_b, z_l, row, length, channel), here)
            open = sigmoid(raw)
            gate, slope = raw * open, open * (1.0 + raw * (1.0 - open))
            if BEFORE:
                scaled = g * gate
            else:
                v, scaled = v * gate, g
        else:
            scaled = g
        e = scaled * w
        r = tl.rsqrt(tl.sum(v * v, 1) / size + eps)[:, None]
        n = v * r
        dv = r * (e - n * (tl.sum(e * n, 1) / size)[:, None])
        total += scaled * n
        to = place_of_results(dy, row, d, channel)
        if z is not None:
            if BEFORE:
                dgate = g * n * w * slope
            else:
                dgate = dv * first * slope
                dv *= gate
            to_gate = place_of_results(dz, row, d, channel)
            tl.store(to_gate, dgate.to(dz.dtype.element_ty), mask=here)
        tl.store(to, dv.to(dy.dtype.element_ty), mask=here)
    to_part = parts + program.to(tl.int64) * d + channel
    tl.store(to_part, tl.sum(total, 0), mask=i < size)
