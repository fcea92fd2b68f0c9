"""e^A - 1 for matrices: exact where e^A is near one, and for matrices of any norm, singular or stiff."""

import math

import torch
from torch import Tensor

# Taylor's series up to this power leaves less than a unit in the last place where the norm is at most 1/2.
_TERMS = 15


def matrix_expm1(A: Tensor) -> Tensor:
    """e^A - I of (..., n, n), differentiable.

    A is halved s times until its norm is at most 1/2, Taylor's series gives E = e^(A / 2^s) - I, and

        e^(2X) - I = 2 E + E E,   E = e^X - I

    doubles it s times. Squaring e^X itself, as is usual, rounds each entry against 1: a slow mode beside
    one that is 10^6 times as fast would lose six digits (Higham, Functions of Matrices, 2008, section 10.3,
    says how squarings err). E is rounded against its own size.

    Example:
        >>> matrix_expm1(torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    norm = float(A.detach().abs().sum(-2).amax()) if A.numel() else 0.0
    halvings = max(0, math.frexp(norm)[1] + 1) if math.isfinite(norm) else 0
    X = A * 2.0**-halvings
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    inner = identity
    for k in range(_TERMS, 1, -1):
        inner = identity + X @ inner / k
    E = X @ inner
    for _ in range(halvings):
        E = 2 * E + E @ E
    return E
