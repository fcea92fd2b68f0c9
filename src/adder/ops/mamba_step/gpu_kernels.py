"""The Triton kernels of one token: a matrix times one vector with what follows it, and what lies between matrices.

A program makes ROWS numbers of one stream, each a dot product in float32. Where the vector is normalised first its
root mean square is a factor of the whole product, so one pass over the vector finds both:

    W (x w / rms(x)) = (W (x w)) / rms(x)
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp2(-LOG2E * x))


@triton.jit
def softplus(x):
    """log(1 + e^x) without overflow, and exact where e^x is small: e^x - e^2x / 2."""
    e = tl.exp2(-LOG2E * tl.abs(x))
    rest = tl.where(e < 1e-4, e - e * e / 2, LN2 * tl.log2(1 + e))
    return tl.maximum(x, 0) + rest


@triton.jit
def products(
    x, norm, weight, row, here, eps, COLUMNS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Rows of weight times x, which is normalised where there is `norm`."""
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    start = row.to(tl.int64) * COLUMNS
    for first in tl.static_range(0, COLUMNS, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < COLUMNS  # all are, where BLOCK divides COLUMNS
        mask = here[:, None] if COLUMNS % BLOCK == 0 else here[:, None] & inside[None, :]
        w = tl.load(weight + start[:, None] + column[None, :], mask=mask, other=0.0)
        value = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
        if norm is not None:
            squares += value * value
            value *= tl.load(norm + column, mask=inside, other=0.0).to(tl.float32)
        total += w.to(tl.float32) * value[None, :]
    result = tl.sum(total, 1)
    if norm is not None:
        result *= 1 / tl.sqrt(tl.sum(squares, 0) / COLUMNS + eps)
    return result


@triton.jit
def convolve(x, channel, here, weight, bias, old, new, CHANNELS: tl.constexpr, TAPS: tl.constexpr):
    """silu of the convolution's next output, where x (rounded as it is stored) comes in and the oldest goes out."""
    x = x.to(new.dtype.element_ty).to(tl.float32)
    at = weight + channel * TAPS
    total = x * tl.load(at + TAPS - 1, mask=here, other=0.0).to(tl.float32)
    if bias is not None:
        total += tl.load(bias + channel, mask=here, other=0.0).to(tl.float32)
    for j in tl.static_range(TAPS - 1):
        before = tl.load(old + j * CHANNELS + channel, mask=here, other=0.0).to(tl.float32)
        total += before * tl.load(at + j, mask=here, other=0.0).to(tl.float32)
        if j > 0:
            tl.store(new + (j - 1) * CHANNELS + channel, before, mask=here)
    if TAPS > 1:
        tl.store(new + (TAPS - 2) * CHANNELS + channel, x, mask=here)
    return total * sigmoid(total)


@triton.jit
def project_kernel(
    x, norm, weight, bias, residual, out, rows, eps,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = weight x + bias, or residual = residual + weight x + bias where there is a residual: x (b COLUMNS)."""
    batch = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = row < rows
    y = products(x + batch * COLUMNS, norm, weight, row, here, eps, COLUMNS, ROWS, BLOCK)
    if bias is not None:
        y += tl.load(bias + row, mask=here, other=0.0).to(tl.float32)
    at = batch * rows + row
    if residual is not None:
        tl.store(residual + at, y + tl.load(residual + at, mask=here, other=0.0), mask=here)
    else:
        tl.store(out + at, y, mask=here)


@triton.jit
def enter_kernel(
    residual, norm, weight, bias, conv_weight, conv_bias, old, new, x, z, eps,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, TAPS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x, z = in_proj(rms_norm(residual)); x = silu(short_convolution(x)): a program has rows of x or of z alone."""
    batch = tl.program_id(1).to(tl.int64)
    blocks: tl.constexpr = (CHANNELS + ROWS - 1) // ROWS
    gate = tl.program_id(0) >= blocks
    channel = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    here = channel < CHANNELS
    row = channel + tl.where(gate, CHANNELS, 0)
    y = products(residual + batch * COLUMNS, norm, weight, row, here, eps, COLUMNS, ROWS, BLOCK)
    if bias is not None:
        y += tl.load(bias + row, mask=here, other=0.0).to(tl.float32)
    if gate:
        tl.store(z + batch * CHANNELS + channel, y, mask=here)
    else:
        past = batch * (TAPS - 1) * CHANNELS
        y = convolve(
            y, channel, here, conv_weight, conv_bias, old + past, new + past, CHANNELS, TAPS
        )
        tl.store(x + batch * CHANNELS + channel, y, mask=here)


@triton.jit
def convolve_kernel(
    xz, conv_weight, conv_bias, old, new, x,
    CHANNELS: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The convolution alone, behind a product that is a library's: xz (b 2 CHANNELS)."""
    batch = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = channel < CHANNELS
    y = tl.load(xz + batch * 2 * CHANNELS + channel, mask=here, other=0.0).to(tl.float32)
    past = batch * (TAPS - 1) * CHANNELS
    y = convolve(y, channel, here, conv_weight, conv_bias, old + past, new + past, CHANNELS, TAPS)
    tl.store(x + batch * CHANNELS + channel, y, mask=here)


@triton.jit
def scan_kernel(
    x, z, projected, dt, dt_weight, dt_bias, A_log, D, old, new, y, z_batch,
    CHANNELS: tl.constexpr, STATES: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr,
    N: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """One step of the selective scan and its gate; dt from its projection here where `dt` is not given.

    projected (b RANK+2STATES) holds dt before its projection, B and C. N and R are powers of two that hold them.
    """
    batch = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = channel < CHANNELS
    projected += batch * (RANK + 2 * STATES)
    if dt is None:
        rank = tl.arange(0, R)
        w = tl.load(
            dt_weight + channel[:, None] * RANK + rank[None, :],
            mask=here[:, None] & (rank < RANK)[None, :], other=0.0,
        )  # fmt: skip
        low = tl.load(projected + rank, mask=rank < RANK, other=0.0).to(tl.float32)
        step = tl.sum(w.to(tl.float32) * low[None, :], 1).to(y.dtype.element_ty).to(tl.float32)
    else:
        step = tl.load(dt + batch * CHANNELS + channel, mask=here, other=0.0).to(tl.float32)
    step = softplus(step + tl.load(dt_bias + channel, mask=here, other=0.0).to(tl.float32))
    u = tl.load(x + batch * CHANNELS + channel, mask=here, other=0.0).to(tl.float32)
    gate = tl.load(z + batch * z_batch + channel, mask=here, other=0.0).to(tl.float32)
    n = tl.arange(0, N)
    B = tl.load(projected + RANK + n, mask=n < STATES, other=0.0).to(tl.float32)
    C = tl.load(projected + RANK + STATES + n, mask=n < STATES, other=0.0).to(tl.float32)
    inside = here[:, None] & (n < STATES)[None, :]
    at = channel[:, None] * STATES + n[None, :]
    A = -tl.exp2(LOG2E * tl.load(A_log + at, mask=inside, other=0.0).to(tl.float32))
    at += batch * CHANNELS * STATES
    h = tl.load(old + at, mask=inside, other=0.0)
    h = tl.exp2(LOG2E * step[:, None] * A) * h + (step * u)[:, None] * B[None, :]
    tl.store(new + at, h, mask=inside)
    out = tl.sum(h * C[None, :], 1) + u * tl.load(D + channel, mask=here, other=0.0).to(tl.float32)
    tl.store(y + batch * CHANNELS + channel, out * gate * sigmoid(gate), mask=here)


@triton.jit
def norm_kernel(residual, added, norm, out, eps, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """residual = residual + added, where something is; out = rms_norm(residual) in out's type. A program has a row."""
    start = tl.program_id(0).to(tl.int64) * COLUMNS
    column = tl.arange(0, BLOCK)
    inside = column < COLUMNS
    x = tl.load(residual + start + column, mask=inside, other=0.0).to(tl.float32)
    if added is not None:
        x += tl.load(added + start + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(residual + start + column, x, mask=inside)
    scale = 1 / tl.sqrt(tl.sum(x * x, 0) / COLUMNS + eps)
    x = x * scale * tl.load(norm + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + start + column, x, mask=inside)
