"""The zeros of a transfer function, without its polynomials."""

import torch
from torch import Tensor

_TOLERANCE = 1e-12


def transmission_zeros(A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The s at which C (s - A)^-1 B + D vanishes, for one input and one output: A (n, n), B (n,), C (n,), D ().

    At a zero there are x and u with  (s - A) x = B u  and  C x + D u = 0.  With D the second gives u, and s is an
    eigenvalue of A - B C / D. Without D, turn the state so that B = (b, 0, ..., 0): u only makes the first line
    true, and the others are the same question with one state less, whose input is the first state. Each turn
    takes off one zero at infinity (Emami-Naeini & Van Dooren, Automatica 18, 1982), where an eigenvalue
    solver would return large numbers that mean nothing.
    """
    size = max(float(x.abs().max()) for x in (A, B, C, D))
    while float(D.abs()) <= _TOLERANCE * size:
        n = A.shape[0]
        if n == 1 or float(B.norm()) <= _TOLERANCE * size:
            return torch.empty(0, dtype=torch.complex128)
        turn = torch.linalg.qr(B[:, None], mode="complete")[0]
        A, C = turn.mT @ A @ turn, C @ turn
        A, B, C, D = A[1:, 1:], A[1:, 0], C[1:], C[0]
    values = torch.linalg.eigvals(A - torch.outer(B, C) / D)
    return values[torch.argsort(values.real, descending=True, stable=True)]
