"""The two products over powers in vectorised PyTorch, in double precision, a few channels at a time.

With l = a S + s the powers are z^l = (z^S)^a z^s, so that (c h m) times (h m l) is, for each channel, a product
of real matrices (a, 2m) (2m, s): nothing of size (h m l) exists. Double precision throughout also keeps away
from what PyTorch may do to a product of float32 matrices (TF32, bfloat16) where a user has allowed it.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

# How many numbers a few channels may need at a time: on a CPU what its caches hold, elsewhere enough to keep it busy.
NUMBERS, NUMBERS_ELSEWHERE = 1 << 21, 1 << 25


def forward(z: Tensor, w: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Return K (c h l) = Re sum_j w_j z_j^l in `dtype`: z (h m), w (c h m), complex128 or float64."""
    (c, h, _), steps = w.shape, _steps(length)
    K = w.new_empty((c, h, length), dtype=dtype)
    for at in _channels(c, z, length):
        fine, coarse = _powers(z[at], length)
        left = w[:, at].unsqueeze(-1) * coarse
        if z.is_complex():
            left = torch.cat([left.real, -left.imag], dim=2)
            fine = torch.cat([fine.real, fine.imag], dim=1)
        product = left.mT @ fine  # (c h a s)
        K[:, at] = product.reshape(c, -1, product.shape[2] * steps)[..., :length]
    return K


def moments(z: Tensor, dK: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum_l dK[l] z^l and sum_l l dK[l] z^(l-1), both (c h m) in z's type: z (h m), dK (c h l)."""
    (c, h, length), m = dK.shape, z.shape[1]
    P0, P1 = z.new_empty(c, h, m), z.new_empty(c, h, m)
    for at in _channels(c, z, length):
        fine, coarse = _powers(z[at], length)
        steps, rows = fine.shape[2], coarse.shape[2]
        # The derivatives of z^s and of z^(a S).
        count = torch.arange(steps, device=z.device)
        fine_slope = F.pad(fine[..., :-1] * count[1:], (1, 0))
        ahead = coarse[..., :-1] * fine[..., -1:]
        coarse_slope = F.pad(ahead * (steps * torch.arange(1, rows, device=z.device)), (1, 0))
        dk = F.pad(dK[:, at].double(), (0, rows * steps - length)).unflatten(-1, (rows, steps))
        sums, slopes = (_times(dk, each).mT for each in (fine, fine_slope))  # (c h m a)
        P0[:, at] = (sums * coarse).sum(-1)
        P1[:, at] = (slopes * coarse + sums * coarse_slope).sum(-1)
    return P0, P1


def _times(dk: Tensor, table: Tensor) -> Tensor:
    """Real (c h a s) times (h m s), real or complex: (c h a m)."""
    if not table.is_complex():
        return dk @ table.mT
    return torch.complex(dk @ table.real.mT, dk @ table.imag.mT)


def _powers(z: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return z^s (h m s) and z^(a S) (h m a), which together reach every step."""
    steps = _steps(length)
    fine = _table(z, steps)
    return fine, _table(fine[..., -1] * z, -(-length // steps))


def _table(z: Tensor, count: int) -> Tensor:
    """Return z^0 ... z^(count-1), along a last axis, by doubling: no logarithm, so z = 0 is exact."""
    table, step = torch.ones_like(z).unsqueeze(-1), z.unsqueeze(-1)
    while table.shape[-1] < count:
        table = torch.cat([table, table * step], dim=-1)
        step = step * step
    return table[..., :count]


def _steps(length: int) -> int:
    """S, the power of two next to the root of the length."""
    return 1 << math.ceil(math.log2(length) / 2)


def _channels(c: int, z: Tensor, length: int) -> Iterator[slice]:
    """Yield slices of channels that keep what is in memory small."""
    h, m = z.shape
    each = 2 * c * length + 8 * m * (2 * c + 3) * _steps(length)
    count = max(1, (NUMBERS if z.device.type == "cpu" else NUMBERS_ELSEWHERE) // each)
    return (slice(first, min(first + count, h)) for first in range(0, h, count))
