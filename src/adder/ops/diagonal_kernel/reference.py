"""The kernel of a diagonal model, one line for each equation: the truth that every implementation is held against."""

import torch
from torch import Tensor

from adder.phi import phi1


def diagonal_kernel_reference(
    A: Tensor, B: Tensor, C: Tensor, dt: Tensor, length: int, *, method: str = "zoh"
) -> Tensor:
    """Return K (c h l). Arguments as in `adder.ops.diagonal_kernel`; (h m l) numbers are stored."""
    working = torch.complex128 if A.is_complex() else torch.float64
    dtype, (A, B, C) = C.dtype.to_real(), (each.to(working) for each in (A, B, C))
    dt = dt.double() if dt.ndim == 2 else dt.double().unsqueeze(-1)
    x = dt * A
    if method == "dss":
        impulse = (B / A).unsqueeze(-1) * _softmax(x.unsqueeze(-1) * torch.arange(length))
    elif method == "bilinear":
        impulse = _response((1 + x / 2) / (1 - x / 2), dt / (1 - x / 2) * B, length)
    else:
        impulse = _response(torch.exp(x), dt * phi1(x) * B, length)
    K = torch.einsum("chm,hml->chl", C, impulse)
    return (2 * K.real if K.is_complex() else K).to(dtype)


def _response(Abar: Tensor, Bbar: Tensor, length: int) -> Tensor:
    """h[0] = Bbar, h[t] = Abar h[t-1]: (h m l)"""
    states = [Bbar]
    while len(states) < length:
        states.append(Abar * states[-1])
    return torch.stack(states, dim=-1)


def _softmax(x: Tensor) -> Tensor:
    """e^x[l] / sum_k e^x[k], also of complex numbers; the largest real part is taken off before."""
    real = x.real if x.is_complex() else x
    powers = torch.exp(x - real.detach().amax(-1, keepdim=True))
    return powers / powers.sum(-1, keepdim=True)
