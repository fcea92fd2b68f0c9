"""The two sums over powers in Triton, for float32 on CUDA devices. float64 is left to the portable products.

With l = a S + s a program makes z^(a S) and z^s for a tile of a and s, and multiplies them as matrices, in float32
without TF32. A power is made from its exponent in double: l log2|z| and l arg(z) / 2 pi are reduced there to a
whole number and a rest, and only the rest is rounded to float32, so no digit of a phase is lost at any length. The
logarithm of z = 0 is a finite number, far below what float32 holds. Nothing is added in an order that changes.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from adder.ops.diagonal_kernel import portable

# A tile has ROWS values of a and STEPS of s, and so many modes are multiplied at a time: on an H100 the fastest of
# nine that were tried, and without spilled registers.
TILE = {"ROWS": 32, "STEPS": 64, "num_warps": 4}
KERNEL_MODES, MOMENTS_MODES = 32, 16
PROGRAMS = 1024  # that the moments are cut into, where the length allows it


def forward(z: Tensor, w: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Return K (c h l) = Re sum_j w_j z_j^l in `dtype`: z (h m), w (c h m), complex128 or float64."""
    if dtype != torch.float32:
        return portable.forward(z, w, length, dtype)
    c, h, m = w.shape
    K = torch.empty((c, h, length), dtype=dtype, device=w.device)
    w = torch.view_as_real(w.to(torch.complex64).contiguous())
    tiles = triton.cdiv(length, TILE["ROWS"] * TILE["STEPS"])
    kernel_tile[(tiles * c * h,)](
        *_logarithms(z),
        w,
        K,
        h,
        m,
        length,
        tiles,
        GROUPS=triton.cdiv(m, KERNEL_MODES),
        PAIRS=z.is_complex(),
        MODES=KERNEL_MODES,
        **TILE,
    )
    return K


def moments(z: Tensor, dK: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum_l dK[l] z^l and sum_l l dK[l] z^(l-1), both (c h m) in z's type: z (h m), dK (c h l)."""
    if dK.dtype != torch.float32:
        return portable.moments(z, dK)
    (c, h, length), m = dK.shape, z.shape[1]
    groups, tiles = triton.cdiv(m, MOMENTS_MODES), triton.cdiv(length, TILE["ROWS"] * TILE["STEPS"])
    each = triton.next_power_of_2(max(1, tiles * c * h * groups // PROGRAMS))
    parts = triton.cdiv(tiles, each)
    sums = torch.empty((parts, 2, c, h, m, 2), dtype=torch.float64, device=z.device)
    moments_part[(parts * groups * c * h,)](
        *_logarithms(z),
        torch.view_as_real(z.to(torch.complex64).contiguous()),
        dK.contiguous(),
        sums,
        c * h * m,
        h,
        m,
        length,
        groups,
        parts,
        TILES=each,
        PAIRS=z.is_complex(),
        MODES=MOMENTS_MODES,
        **TILE,
    )
    total = sums.sum(0)
    P0, P1 = torch.view_as_complex(total) if z.is_complex() else total[..., 0]
    return P0, P1


def _logarithms(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return log2|z|, which may be far below zero but not infinite, and arg(z) / 2 pi, in double."""
    octaves, turns = z.abs().log2().clamp(min=-1000), z.angle() / (2 * math.pi)
    return octaves.contiguous(), turns.contiguous()


@triton.jit
def power(octaves, turns, e):
    """2^(e octaves) and the angle e turns: the real and the imaginary part, in float32. e is whole, in double."""
    size = tl.minimum(tl.maximum(e * octaves, -200.0), 200.0)
    whole = tl.floor(size + 0.5)
    f = (size - whole).to(tl.float32) * 0.6931471805599453
    p = 1.0 / 6 + f * (1.0 / 24 + f * (1.0 / 120 + f * (1.0 / 720 + f / 5040)))
    p = 1.0 + f * (1.0 + f * (0.5 + f * p))
    bits = tl.minimum(tl.maximum(whole.to(tl.int32) + 127, 0), 255) << 23
    r = p * bits.to(tl.float32, bitcast=True)
    angle = e * turns
    quarters = tl.floor(4 * angle + 0.5)
    x = (angle - 0.25 * quarters).to(tl.float32) * 6.283185307179586
    y = x * x
    s = x * (1.0 + y * (-1.0 / 6 + y * (1.0 / 120 + y * (-1.0 / 5040 + y / 362880))))
    c = 1.0 + y * (-0.5 + y * (1.0 / 24 + y * (-1.0 / 720 + y / 40320)))
    quarter = (quarters - 4 * tl.floor(0.25 * quarters)).to(tl.int32)
    odd = quarter % 2 == 1
    cosine = tl.where(odd, s, c)
    sine = tl.where(odd, c, s)
    cosine = tl.where((quarter == 1) | (quarter == 2), -cosine, cosine)
    sine = tl.where(quarter >= 2, -sine, sine)
    return r * cosine, r * sine


@triton.jit
def kernel_tile(
    octaves,
    turns,
    w,
    K,
    h,
    m,
    length,
    tiles,
    GROUPS: tl.constexpr,
    PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    MODES: tl.constexpr,
):
    """K[a, s] = sum_j Re (w_j z_j^(aS)) Re z_j^s - Im (w_j z_j^(aS)) Im z_j^s, for a tile of one channel."""
    channel = (tl.program_id(0) // tiles).to(tl.int64)
    start = (tl.program_id(0) % tiles).to(tl.int64) * (ROWS * STEPS)
    s = tl.arange(0, STEPS)
    e = start + tl.arange(0, ROWS) * STEPS
    total = tl.zeros((ROWS, STEPS), tl.float32)
    for group in range(GROUPS):
        j = group * MODES + tl.arange(0, MODES)
        here = j < m
        octave = tl.load(octaves + channel % h * m + j, mask=here, other=0.0)
        turn = tl.load(turns + channel % h * m + j, mask=here, other=0.0)
        re = tl.load(w + 2 * (channel * m + j), mask=here, other=0.0)[None, :]
        fine, fine_im = power(octave[:, None], turn[:, None], s.to(tl.float64)[None, :])
        coarse, coarse_im = power(octave[None, :], turn[None, :], e.to(tl.float64)[:, None])
        if PAIRS:
            im = tl.load(w + 2 * (channel * m + j) + 1, mask=here, other=0.0)[None, :]
            left = re * coarse - im * coarse_im
            left_im = re * coarse_im + im * coarse
            total = tl.dot(left, fine, total, input_precision="ieee")
            total = tl.dot(left_im, -fine_im, total, input_precision="ieee")
        else:
            total = tl.dot(re * coarse, fine, total, input_precision="ieee")
    at = e[:, None] + s[None, :]
    tl.store(K + channel * length + at, total, mask=at < length)


@triton.jit
def moments_part(
    octaves,
    turns,
    z,
    dK,
    sums,
    numbers,
    h,
    m,
    length,
    groups,
    parts,
    TILES: tl.constexpr,
    PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    MODES: tl.constexpr,
):
    """Both moments of some modes of one channel, over some tiles of the length.

    With G[a] = sum_s dK[a, s] z^s and G'[a] = sum_s dK[a, s] s z^(s-1):
    P0 = sum_a z^(aS) G[a],  P1 = sum_a z^(aS) G'[a] + aS z^(aS-1) G[a].
    """
    part = (tl.program_id(0) % parts).to(tl.int64)
    group = tl.program_id(0) // parts % groups
    channel = (tl.program_id(0) // parts // groups).to(tl.int64)
    j = group * MODES + tl.arange(0, MODES)
    here = j < m
    mode = channel % h * m + j
    octave = tl.load(octaves + mode, mask=here, other=0.0)[None, :]
    turn = tl.load(turns + mode, mask=here, other=0.0)[None, :]
    re = tl.load(z + 2 * mode, mask=here, other=1.0)[None, :]
    im = tl.load(z + 2 * mode + 1, mask=here, other=0.0)[None, :]
    s = tl.arange(0, STEPS)
    f, f_im, d, d_im = power_and_slope(octave, turn, re, im, s.to(tl.int64)[:, None])
    P0 = tl.zeros((MODES,), tl.float64)
    P1 = tl.zeros((MODES,), tl.float64)
    P0_im = tl.zeros((MODES,), tl.float64)
    P1_im = tl.zeros((MODES,), tl.float64)
    for tile in range(TILES):
        e = (part * TILES + tile) * (ROWS * STEPS) + tl.arange(0, ROWS) * STEPS
        at = e[:, None] + s[None, :]
        dk = tl.load(dK + channel * length + at, mask=at < length, other=0.0)
        z0, z0_im, z1, z1_im = power_and_slope(octave, turn, re, im, e[:, None])
        G0 = tl.dot(dk, f, input_precision="ieee")
        G1 = tl.dot(dk, d, input_precision="ieee")
        if PAIRS:
            G0_im = tl.dot(dk, f_im, input_precision="ieee")
            G1_im = tl.dot(dk, d_im, input_precision="ieee")
            P0 += tl.sum(z0 * G0 - z0_im * G0_im, 0).to(tl.float64)
            P0_im += tl.sum(z0 * G0_im + z0_im * G0, 0).to(tl.float64)
            P1 += tl.sum(z0 * G1 - z0_im * G1_im + z1 * G0 - z1_im * G0_im, 0).to(tl.float64)
            P1_im += tl.sum(z0 * G1_im + z0_im * G1 + z1 * G0_im + z1_im * G0, 0).to(tl.float64)
        else:
            P0 += tl.sum(z0 * G0, 0).to(tl.float64)
            P1 += tl.sum(z0 * G1 + z1 * G0, 0).to(tl.float64)
    first = sums + 2 * (2 * part * numbers + channel * m + j)
    second = sums + 2 * ((2 * part + 1) * numbers + channel * m + j)
    tl.store(first, P0, mask=here)
    tl.store(first + 1, P0_im, mask=here)
    tl.store(second, P1, mask=here)
    tl.store(second + 1, P1_im, mask=here)


@triton.jit
def power_and_slope(octave, turn, re, im, e):
    """z^e and its derivative e z^(e-1), where z^e is z^(e-1) z: one power for both."""
    p, p_im = power(octave, turn, tl.maximum(e - 1, 0).to(tl.float64))
    count = e.to(tl.float32)
    none = e == 0
    q = tl.where(none, 1.0, p * re - p_im * im)
    q_im = tl.where(none, 0.0, p * im + p_im * re)
    return q, q_im, count * p, count * p_im
