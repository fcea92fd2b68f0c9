"""The C++ kernels of the two sums over powers, and how the tensors reach them. They serve float32 and float64: all."""

from typing import Any

import torch
from torch import Tensor

from adder.ops.native import STORAGE, address, threads


def forward(kernels: Any, z: Tensor, w: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Return K (c h l) = Re sum_j w_j z_j^l in `dtype`: z (h m), w (c h m), complex128 or float64."""
    (c, h, m), z, w = w.shape, z.contiguous(), w.contiguous()
    K = torch.empty((c, h, length), dtype=dtype)
    kernels.diagonal_kernel(
        STORAGE[dtype],
        threads(),
        (c, h, m, length),
        z.is_complex(),
        address(z),
        address(w),
        address(K),
    )
    return K


def moments(kernels: Any, z: Tensor, dK: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum_l dK[l] z^l and sum_l l dK[l] z^(l-1), both (c h m) in z's type: z (h m), dK (c h l)."""
    (c, h, length), m, z, dK = dK.shape, z.shape[1], z.contiguous(), dK.contiguous()
    sums = torch.empty((2, c, h, m), dtype=z.dtype)
    blocks = kernels.diagonal_blocks(length)
    parts = sums if blocks == 1 else torch.empty((blocks, *sums.shape), dtype=z.dtype)
    kernels.diagonal_moments(
        STORAGE[dK.dtype],
        threads(),
        (c, h, m, length),
        z.is_complex(),
        address(z),
        address(dK),
        address(sums),
        address(parts),
    )
    return sums[0], sums[1]
