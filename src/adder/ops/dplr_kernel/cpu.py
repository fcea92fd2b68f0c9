"""The C++ kernels of S4's kernel, and how the tensors reach them. They serve every call: K is float32 or float64."""

from typing import Any

import torch
from torch import Tensor

from adder.ops.dplr_kernel.portable import steps_of
from adder.ops.native import STORAGE, address, threads


def forward(
    kernels: Any, Abar: Tensor, Bbar: Tensor, c: Tensor, length: int, dtype: torch.dtype
) -> Tensor:
    """Return K (c h l) in `dtype`: Abar (h n n), Bbar (h n), c (c h n), all float64."""
    K = torch.empty(c.shape[0], c.shape[1], length, dtype=dtype)
    Abar, Bbar, c = Abar.contiguous(), Bbar.contiguous(), c.contiguous()
    sizes = (*Bbar.shape, c.shape[0], length, steps_of(length))
    system = (address(Abar), address(Bbar), address(c))
    kernels.dplr_kernel(STORAGE[dtype], threads(), sizes, *system, address(K))
    return K


def backward(
    kernels: Any, Abar: Tensor, Bbar: Tensor, c: Tensor, dK: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of Abar, Bbar and c."""
    Abar, Bbar, c, dK = Abar.contiguous(), Bbar.contiguous(), c.contiguous(), dK.contiguous()
    dAbar, dBbar, dc = (torch.empty(each.shape, dtype=torch.float64) for each in (Abar, Bbar, c))
    kernels.dplr_kernel_backward(
        STORAGE[dK.dtype],
        threads(),
        (*Bbar.shape, c.shape[0], dK.shape[-1], steps_of(dK.shape[-1])),
        *(address(each) for each in (Abar, Bbar, c, dK, dAbar, dBbar, dc)),
    )
    return dAbar, dBbar, dc
