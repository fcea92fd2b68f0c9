"""The bilinear transform of A = Lambda - P P*, as real matrices, and its adjoint. Small: (h, n, n), in float64.

A state h and its conjugate are one real vector x = (Re h, Im h) of n = 2 m numbers. In these coordinates

    A = D - 2 p p^T       D x = Lambda h, blocks of two by two       p = (Re P, Im P), one column for each rank
    b = (Re B, Im B)      c = (2 Re C, -2 Im C)                      y = c x = 2 Re(C h)

and with G = (I - dt/2 A)^-1, found from the diagonal by Woodbury's identity, Abar = 2 G - I and Bbar = dt G b.
Where Re Lambda <= 0, A + A^T <= 0, so no power of Abar is longer than 1: they can be multiplied without care.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Discrete(NamedTuple):
    """Abar (h n n), Bbar (h n), c (c h n), and G (h n n), all float64."""

    Abar: Tensor
    Bbar: Tensor
    c: Tensor
    G: Tensor


def pair(x: Tensor) -> Tensor:
    """(..., m) complex to (..., 2 m) float64: the real parts, then the imaginary ones."""
    return torch.cat([x.real, x.imag], dim=-1).double()


def unpair(x: Tensor) -> Tensor:
    """(..., 2 m) real to (..., m) complex."""
    real, imag = x.chunk(2, dim=-1)
    return torch.complex(real.contiguous(), imag.contiguous())


def rotations(z: Tensor) -> Tensor:
    """(..., m) complex to (..., n, n) real: the matrix that multiplies each of m complex numbers by its own z."""
    real, imag = torch.diag_embed(z.real), torch.diag_embed(z.imag)
    return torch.cat([torch.cat([real, -imag], -1), torch.cat([imag, real], -1)], -2)


def bilinear(Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor) -> Discrete:
    """Discretise: Lambda (h m), P (r h m), B (h m), C (c h m), dt (h)."""
    Lambda, P = Lambda.to(torch.complex128), P.to(torch.complex128)
    step = dt.double()
    rho = (1 - step[:, None] / 2 * Lambda).reciprocal()
    p = pair(P).movedim(0, 1)  # (h r n)
    left, right = pair(rho * P).movedim(0, 1), pair(rho.conj_physical() * P).movedim(0, 1)
    scale = step[:, None, None]
    small = torch.eye(p.shape[1], dtype=p.dtype, device=p.device) + scale * (left @ p.mT)
    G = rotations(rho) - scale * left.mT @ torch.linalg.solve(small.mT, right)
    identity = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
    Bbar = step[:, None] * (G @ pair(B).unsqueeze(-1)).squeeze(-1)
    return Discrete(2 * G - identity, Bbar, pair(2 * C.conj_physical()), G)


def bilinear_adjoint(
    Lambda: Tensor,
    P: Tensor,
    B: Tensor,
    dt: Tensor,
    G: Tensor,
    dAbar: Tensor,
    dBbar: Tensor,
    dc: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of Lambda, P, B, C and dt from those of Abar, Bbar and c."""
    step = dt.double()
    p, b, eigenvalues = pair(P), pair(B), pair(Lambda)
    dG = 2 * dAbar + step[:, None, None] * dBbar.unsqueeze(-1) * b.unsqueeze(-2)
    db = (G.mT @ dBbar.unsqueeze(-1)).squeeze(-1)
    dM = -G.mT @ dG @ G.mT  # M = I - dt/2 A = G^-1
    m = Lambda.shape[-1]
    diagonal = dM.diagonal(dim1=-2, dim2=-1)
    across = dM[:, m:, :m].diagonal(dim1=-2, dim2=-1) - dM[:, :m, m:].diagonal(dim1=-2, dim2=-1)
    by_lambda = torch.cat([diagonal[:, :m] + diagonal[:, m:], across], dim=-1)
    by_p = torch.einsum("hij,rhj->rhi", dM + dM.mT, p)
    by_A = (by_lambda * eigenvalues).sum(-1) - (by_p * p).sum((0, -1))  # <dM, A>
    ddt = (dBbar * (G @ b.unsqueeze(-1)).squeeze(-1)).sum(-1) - by_A / 2
    half = step[:, None] / 2
    return (
        unpair(-half * by_lambda),
        unpair(2 * half * by_p),
        unpair(step[:, None] * db),
        unpair(2 * dc).conj_physical(),
        ddt,
    )
