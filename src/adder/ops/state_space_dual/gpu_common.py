"""What the Triton kernels of state space duality share. A chunk has T steps; a program has one, of one head.

Decays are exp2 of differences of sums over a chunk, which restart with each packed sequence. A sum is kept as a
multiple of 1 / GRID, whose differences are exact, and the small rest: no digit of a slow decay behind fast ones is
lost. A log-decay below LEAST counts as LEAST: its decay is 0 in float32 as well, and no sum is infinite.
"""

import triton
import triton.language as tl

from adder.ops.gpu_math import sigmoid

LOG2E = tl.constexpr(1.4426950216293335)  # and its rest: together log2(e), each a float32
LOG2E_REST = tl.constexpr(1.9259629911e-8)
GRID = tl.constexpr(256.0)
LEAST = tl.constexpr(-160.0)


@triton.jit
def place(index, heads, chunks, TILES: tl.constexpr = 1):
    """Batch row, chunk and head of a program: tiles of a head, and heads, which share B and C, are neighbours."""
    head = index // TILES % heads
    rest = index // TILES // heads
    return (rest // chunks).to(tl.int64), (rest % chunks).to(tl.int64), head.to(tl.int64)


@triton.jit
def marked(marks, begin, end):
    """Whether any of at most 64 programs has marked itself."""
    at = begin + tl.arange(0, 64)
    return tl.max(tl.load(marks + at, mask=at < end, other=0), 0) > 0


@triton.jit
def operand(x, PRECISION: tl.constexpr):
    """x as a product takes it: rounded to bfloat16 where the signals are, else float32."""
    return x.to(tl.bfloat16) if PRECISION == "bf16" else x.to(tl.float32)


@triton.jit
def product(a, b, total, PRECISION: tl.constexpr):
    """total + a b, of operands."""
    if PRECISION == "bf16":
        return tl.dot(a, b, total)
    else:
        return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def three_parts(x):
    """float32 as a sum of three bfloat16, 24 bits, the largest first."""
    high = x.to(tl.bfloat16)
    rest = x - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
    return high, middle, low


@triton.jit
def exact_product(a, b, total, PRECISION: tl.constexpr):
    """total + a b, a an operand and b float32: b is cut into three bfloat16, 24 bits, so that nothing is rounded."""
    if PRECISION == "bf16":
        high, middle, low = three_parts(b)
        total = tl.dot(a, low, total)
        total = tl.dot(a, middle, total)
        return tl.dot(a, high, total)
    else:
        return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def exact_sums(a, b, total, PRECISION: tl.constexpr):
    """total + a b, a float32, cut into three bfloat16, and b an operand."""
    if PRECISION == "bf16":
        high, middle, low = three_parts(a)
        total = tl.dot(low, b, total)
        total = tl.dot(middle, b, total)
        return tl.dot(high, b, total)
    else:
        return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def rows_of(pointer, row_size, row, column, length, width):
    """Rows of a signal (l, width), zero where there are none."""
    here = (row < length)[:, None] & (column < width)[None, :]
    return tl.load(pointer + row[:, None] * row_size + column[None, :], mask=here, other=0.0)


@triton.jit
def gated(dy, z, dy_l, z_l, row, column, length, width):
    """q = dy silu(z) in float32."""
    q = rows_of(dy, dy_l, row, column, length, width).to(tl.float32)
    if z is not None:
        gate = rows_of(z, z_l, row, column, length, width).to(tl.float32)
        q *= gate * sigmoid(gate)
    return q


@triton.jit
def state_block(states, i, c, n, p):
    """States i (n) of channels c (p), float32, zero where there are none."""
    here = (i < n)[:, None] & (c < p)[None, :]
    return tl.load(states + i[:, None] * p + c[None, :], mask=here, other=0.0)


@triton.jit
def sequences(number, at):
    """The number of each step's packed sequence, counted from the one before the chunk, which is 0."""
    if number is None:
        return at * 0
    else:
        return tl.load(number + at)


@triton.jit
def decays(sums, rests, last_sum, last_rest):
    """exp2 of what the sums lack to the last ones."""
    return tl.exp2((last_sum - sums) + (last_rest - rests))


@triton.jit
def weights_of(sums, rests, steps, m, s, base, PRECISION: tl.constexpr):
    """L(s, m) dt[s] of rows m and columns s <= m; otherwise any number. `base` is the first row.

    For products of bfloat16 the exponent is one sum from the column to the base, with the logarithm of the step, and
    one from there to the row: each is of one sign where the column is before the base.
    """
    sum_m, rest_m = tl.load(sums + m), tl.load(rests + m)
    sum_s, rest_s, step = tl.load(sums + s), tl.load(rests + s), tl.load(steps + s)
    if PRECISION == "bf16":
        sum_0, rest_0 = tl.load(sums + base), tl.load(rests + base)
        row = (sum_m - sum_0) + (rest_m - rest_0)
        column = (sum_0 - sum_s) + (rest_0 - rest_s) + tl.log2(step)
        return tl.exp2(row[:, None] + column[None, :])
    else:
        log = (sum_m[:, None] - sum_s[None, :]) + (rest_m[:, None] - rest_s[None, :])
        return tl.exp2(log) * step[None, :]


@triton.jit
def clean(x):
    """x with 0 for what is not finite, and where that is: a weight of zero does not silence NaN."""
    x = x.to(tl.float32)
    bad = infinite(x)
    return tl.where(bad, 0.0, x), bad


@triton.jit
def infinite(x):
    """Whether x is not finite."""
    return (tl.abs(x) < float("inf")) == 0


@triton.jit
def any_infinite(x):
    """Whether any number of a matrix is not finite."""
    return tl.max(tl.max(infinite(x).to(tl.int32), 1), 0) > 0


@triton.jit
def spoiled(out, reached, bad, PRECISION: tl.constexpr):
    """out (rows, columns), NaN where a row reaches a step whose value is not finite; reached (rows, steps)."""
    met = product(
        operand(reached.to(tl.float32), PRECISION),
        operand(bad.to(tl.float32), PRECISION),
        tl.zeros(out.shape, tl.float32),
        PRECISION,
    )
    return tl.where(met > 0.5, float("nan"), out)
