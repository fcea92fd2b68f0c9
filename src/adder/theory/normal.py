"""The eigenvectors of a skew-symmetric matrix, one of each conjugate pair."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor


def conjugate_pairs(
    S: Float[Tensor, "n n"],
) -> tuple[Float[Tensor, " m"], Complex[Tensor, "n m"]]:
    """Return frequencies w (m,), ascending from 0, and V (n, m) with S = 2 Re(V diag(i w) V^*); n = 2 m.

    [V, conj V] is unitary. -i S is Hermitian, so `eigh` finds its vectors to the last digit, which no solver does
    for a HiPPO matrix itself. Where a frequency is 0 the two vectors of a pair are not each other's conjugates
    until they are made so: any two real ones p, q that are left give (p + i q) / sqrt(2).
    """
    m = S.shape[0] // 2
    frequencies, vectors = torch.linalg.eigh(-1j * S)
    w, V = frequencies[m:], vectors[:, m:]
    still = int((w <= 1e-12 * S.shape[0] * w[-1]).sum())
    if still:
        moving = V[:, still:]
        rest = torch.eye(2 * m, dtype=S.dtype) - 2 * (moving @ moving.mH).real
        real = torch.linalg.eigh(rest)[1][:, 2 * (m - still) :]
        V = torch.cat([torch.complex(real[:, 0::2], real[:, 1::2]) / 2**0.5, moving], dim=1)
        w = torch.cat([torch.zeros_like(w[:still]), w[still:]])
    return w, V


def with_phase_of(V: Complex[Tensor, "n m"], B: Float[Tensor, " n"]) -> Complex[Tensor, "n m"]:
    """Turn each column of V so that V^* B is real and positive."""
    overlap = V.mH @ B.to(V)
    size = overlap.abs()
    return V * torch.where(size > 1e-9 * size.max(), overlap / size, 1)
