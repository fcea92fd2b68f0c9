"""The Triton kernels of one token: a matrix times a vector with what follows it, and what lies between matrices.

For one stream a program makes ROWS numbers. It asks for its weights before it waits for the kernel before it, and a
vector that is normalised meets them as it is, for its root mean square is a factor of the whole product:

    W (x w / rms(x)) = (W (x w)) / rms(x)

For several streams the large products are a library's, and these kernels are what lies between.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adder.ops.gpu_math import LOG2E, sigmoid, softplus


@triton.jit
def begin(DEPENDENT: tl.constexpr):
    """Let the next kernel start: it waits where it reads what this one writes."""
    if DEPENDENT:
        gdc_launch_dependents()


@triton.jit
def wait(DEPENDENT: tl.constexpr):
    """For all that the kernels before have written. Nothing is written above a wait."""
    if DEPENDENT:
        gdc_wait()


@triton.jit
def products(
    x, norm, weight, row, rows, eps,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Rows of weight times one vector x (1, ROWS), which is normalised where there is `norm`."""
    here = row < rows
    weight += row.to(tl.int64)[:, None] * COLUMNS
    ws = ()
    for first in tl.static_range(0, COLUMNS, BLOCK):
        column = first + tl.arange(0, BLOCK)
        mask = here[:, None] & (column < COLUMNS)[None, :]
        if COLUMNS % BLOCK == 0:
            mask = here[:, None]
        w = tl.load(weight + column[None, :], mask=mask, other=0.0, eviction_policy="evict_first")
        ws = ws + (w,)
    wait(DEPENDENT)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(0, (COLUMNS + BLOCK - 1) // BLOCK):
        column = i * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(x + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
        if norm is not None:
            squares += value * value
            value *= tl.load(norm + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
        total += ws[i].to(tl.float32) * value[None, :]
    result = tl.sum(total, 1)
    if norm is not None:
        result *= 1 / tl.sqrt(tl.sum(squares, 0) / COLUMNS + eps)
    return result[None, :]


@triton.jit
def with_bias(y, bias, row, rows):
    if bias is not None:
        y += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[None, :]
    return y


@triton.jit
def window(stream, channel, here, weight, bias, old, CHANNELS: tl.constexpr, TAPS: tl.constexpr):
    """The inputs that the convolution holds, its taps and its bias: what is there before its next input is."""
    befores, taps = (), ()
    for j in tl.static_range(TAPS):
        taps = taps + (
            tl.load(weight + channel * TAPS + j, mask=channel < CHANNELS, other=0.0).to(tl.float32),
        )
        if j < TAPS - 1:
            at = stream * ((TAPS - 1) * CHANNELS) + j * CHANNELS + channel
            befores = befores + (tl.load(old + at, mask=here, other=0.0).to(tl.float32),)
    total = tl.zeros(channel.shape, tl.float32)
    if bias is not None:
        total += tl.load(bias + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)
    return befores, taps, total


@triton.jit
def convolve(x, held, stream, channel, here, new, CHANNELS: tl.constexpr, TAPS: tl.constexpr):
    """silu of the convolution's next output, where x (rounded as it is stored) comes in and the oldest goes out."""
    befores, taps, total = held
    x = x.to(new.dtype.element_ty).to(tl.float32)
    new += stream * ((TAPS - 1) * CHANNELS) + channel
    for j in tl.static_range(TAPS - 1):
        total += befores[j] * taps[j]
        if j > 0:
            tl.store(new + (j - 1) * CHANNELS, befores[j], mask=here)
    if TAPS > 1:
        tl.store(new + (TAPS - 2) * CHANNELS, x, mask=here)
    total += x * taps[TAPS - 1]
    return total * sigmoid(total)


@triton.jit
def project_kernel(
    x, norm, weight, bias, residual, out, rows, eps,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One stream: out = weight x + bias, or that added to residual, where there is one."""
    begin(DEPENDENT)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    y = products(x, norm, weight, row, rows, eps, COLUMNS, ROWS, BLOCK, DEPENDENT)
    y = with_bias(y, bias, row, rows)
    here, at = (row < rows)[None, :], row[None, :]
    if residual is not None:
        tl.store(residual + at, y + tl.load(residual + at, mask=here, other=0.0), mask=here)
    else:
        tl.store(out + at, y, mask=here)


@triton.jit
def enter_kernel(
    u, norm, weight, bias, conv_weight, conv_bias, old, new, x, z, eps,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, TAPS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One stream: x, z = in_proj(rms_norm(u)); x = silu(short_convolution(x)). A program has rows of x or of z."""
    begin(DEPENDENT)
    blocks: tl.constexpr = (CHANNELS + ROWS - 1) // ROWS
    gate = tl.program_id(0) >= blocks
    channel = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    first = tl.where(gate, CHANNELS, 0)
    row, rows = channel + first, CHANNELS + first
    at = channel[None, :]
    here = (at < CHANNELS) & (gate == 0)
    held = window(0, at, here, conv_weight, conv_bias, old, CHANNELS, TAPS)
    y = products(u, norm, weight, row, rows, eps, COLUMNS, ROWS, BLOCK, DEPENDENT)
    y = with_bias(y, bias, row, rows)
    tl.store(z + at, y, mask=(at < CHANNELS) & gate)
    tl.store(x + at, convolve(y, held, 0, at, here, new, CHANNELS, TAPS), mask=here)


@triton.jit
def convolve_kernel(
    xz, conv_weight, conv_bias, old, new, x, streams,
    CHANNELS: tl.constexpr, TAPS: tl.constexpr, STREAMS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Several streams: the convolution behind a product that is a library's, xz (b 2 CHANNELS)."""
    begin(DEPENDENT)
    stream = (tl.program_id(1) * STREAMS + tl.arange(0, STREAMS)).to(tl.int64)[:, None]
    channel = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[None, :]
    here = (stream < streams) & (channel < CHANNELS)
    held = window(stream, channel, here, conv_weight, conv_bias, old, CHANNELS, TAPS)
    wait(DEPENDENT)
    y = tl.load(xz + stream * (2 * CHANNELS) + channel, mask=here, other=0.0).to(tl.float32)
    y = convolve(y, held, stream, channel, here, new, CHANNELS, TAPS)
    tl.store(x + stream * CHANNELS + channel, y, mask=here)


@triton.jit
def scan_kernel(
    x, z, projected, dt, dt_weight, dt_bias, A_log, D, old, new, y, z_stream,
    CHANNELS: tl.constexpr, N: tl.constexpr, RANK: tl.constexpr,
    BLOCK: tl.constexpr, STATES: tl.constexpr, R: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """softplus(dt), one step of the selective scan, and its gate; dt is projected here where it is not given.

    projected (b RANK+2N) is dt before its projection, B and C. STATES and R are powers of two that hold N and RANK.
    """
    begin(DEPENDENT)
    stream = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    n, rank = tl.arange(0, STATES), tl.arange(0, R)
    here = inside[:, None] & (n < N)[None, :]
    at = channel[:, None] * N + n[None, :]
    A = -LOG2E * tl.exp2(LOG2E * tl.load(A_log + at, mask=here, other=0.0).to(tl.float32))
    bias = tl.load(dt_bias + channel, mask=inside, other=0.0).to(tl.float32)
    skip = tl.load(D + channel, mask=inside, other=0.0).to(tl.float32)
    at += stream * CHANNELS * N
    h = tl.load(old + at, mask=here, other=0.0)
    if dt is None:
        mask = inside[:, None] & (rank < RANK)[None, :]
        w = tl.load(dt_weight + channel[:, None] * RANK + rank[None, :], mask=mask, other=0.0)
    wait(DEPENDENT)
    projected += stream * (RANK + 2 * N)
    each = stream * CHANNELS + channel
    if dt is None:
        low = tl.load(projected + rank, mask=rank < RANK, other=0.0).to(tl.float32)
        step = tl.sum(w.to(tl.float32) * low[None, :], 1)
    else:
        step = tl.load(dt + each, mask=inside, other=0.0).to(tl.float32)
    step = softplus(step + bias)
    B = tl.load(projected + RANK + n, mask=n < N, other=0.0).to(tl.float32)
    C = tl.load(projected + RANK + N + n, mask=n < N, other=0.0).to(tl.float32)
    u = tl.load(x + each, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(z + stream * z_stream + channel, mask=inside, other=0.0).to(tl.float32)
    h = tl.exp2(step[:, None] * A) * h + (step * u)[:, None] * B[None, :]
    tl.store(new + at, h, mask=here)
    out = tl.sum(h * C[None, :], 1) + u * skip
    tl.store(y + each, out * gate * sigmoid(gate), mask=inside)


@triton.jit
def norm_kernel(
    residual, added, norm, out, eps,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """residual += added, where something is; out = rms_norm(residual). A program has a row."""
    begin(DEPENDENT)
    stream = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < COLUMNS
    scale = tl.load(norm + column, mask=inside, other=0.0).to(tl.float32)
    wait(DEPENDENT)
    x = tl.load(residual + stream * COLUMNS + column, mask=inside, other=0.0)
    if added is not None:
        x += tl.load(added + stream * COLUMNS + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(residual + stream * COLUMNS + column, x, mask=inside)
    x *= 1 / tl.sqrt(tl.sum(x * x, 0) / COLUMNS + eps)
    tl.store(out + stream * COLUMNS + column, x * scale, mask=inside)
