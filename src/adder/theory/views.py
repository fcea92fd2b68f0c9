"""The views of one discrete system: recurrence, kernel, convolution, transfer function. Slow, exact, readable.

    h[t] = A h[t-1] + B x[t]        y[t] = C h[t] + D x[t]

A (n, n), B (n, p), C (q, n), D (q, p) in float64, with n states, p inputs and q outputs. All views are one map:

    recurrence      step by step
    kernel          K[l] = C A^l B, so that y = K * x + D x
    convolution     by FFT
    transfer        H(z) = sum_l K[l] z^-l + D = C (1 - A / z)^-1 B + D
    spectrum        the same sum cut off after L terms, at the L-th roots of unity: what S4 computes
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from adder.errors import UsageError
from adder.theory.printing import number

# Largest number of matrix entries that one batched solution may hold.
_BLOCK = 1 << 22
# s is taken for a pole where a change of each entry of s - A by this part of |s| + |A| makes it singular.
_POLE = 1e-13


def recurrence(
    A: Float[Tensor, "n n"],
    B: Float[Tensor, "n p"],
    C: Float[Tensor, "q n"],
    D: Float[Tensor, "q p"],
    x: Float[Tensor, "*b l p"],
    state: Float[Tensor, "*b n"],
) -> tuple[Float[Tensor, "*b l q"], Float[Tensor, "*b n"]]:
    """y and the last state, one step after the other."""
    driven = x @ B.mT
    h, states = state, []
    for t in range(x.shape[-2]):
        h = h @ A.mT + driven[..., t, :]
        states.append(h)
    return torch.stack(states, dim=-2) @ C.mT + x @ D.mT, h


def kernel(
    A: Float[Tensor, "n n"], B: Float[Tensor, "n p"], C: Float[Tensor, "q n"], length: int
) -> Float[Tensor, "q p l"]:
    """K[l] = C A^l B for l < length, by powers of the dense matrix."""
    column, columns = B, [B]
    for _ in range(length - 1):
        column = A @ column
        columns.append(column)
    return torch.einsum("qn,lnp->qpl", C, torch.stack(columns))


def convolution(
    K: Float[Tensor, "q p l"], D: Float[Tensor, "q p"], x: Float[Tensor, "*b l p"]
) -> Float[Tensor, "*b l q"]:
    """y = K * x + D x by FFT, padded to 2 l so that nothing wraps around."""
    length = x.shape[-2]
    size = 2 * length
    spectrum = torch.einsum(
        "qpf,...fp->...fq", torch.fft.rfft(K, size), torch.fft.rfft(x, size, -2)
    )
    return torch.fft.irfft(spectrum, size, -2)[..., :length, :] + x @ D.mT


def resolvent(
    A: Float[Tensor, "n n"],
    B: Float[Tensor, "n p"],
    C: Float[Tensor, "q n"],
    s: Complex[Tensor, " f"],
    *,
    name: str,
) -> Complex[Tensor, "f q p"]:
    """C (s - A)^-1 B at each s, for the function `name`; refused where s is an eigenvalue of A, up to rounding."""
    a, b, c = (x.to(torch.complex128) for x in (A, B, C))
    n = a.shape[0]
    identity = torch.eye(n, dtype=a.dtype, device=a.device)
    shape = _triangle(A)
    rows = []
    for part in s.split(max(1, _BLOCK // (n * n))):
        # Expanded, or `solve` takes b for a batch of vectors where its shape happens to be (f, n).
        right = b.expand(len(part), *b.shape)
        system = part[:, None, None] * identity - a
        size = A.detach().abs() + part.detach().abs()[:, None, None] * identity.real
        poles = _singular(system.detach(), size, shape)
        if bool(poles.any()):
            raise UsageError(
                f"{name}: the system has a pole at {number(complex(part[poles][0]))}, one of the points asked for"
            )
        if shape and not A.requires_grad:  # its gradient would leave out the other triangle
            solved = torch.linalg.solve_triangular(system, right, upper=shape == "upper")
        else:
            solved = torch.linalg.solve(system, right)
        rows.append(c @ solved)
    return torch.cat(rows)


def _triangle(A: Tensor) -> str:
    """Which triangle holds all of A, if one does. LU does not keep the zeros of the other.

    Among the eigenvalues of HiPPO-LegS, which move a long way when the zeros go, it would lose every digit.
    """
    for name, rest in (("upper", A.detach().tril(-1)), ("lower", A.detach().triu(1))):
        if not bool(rest.any()):
            return name
    return ""


def _singular(system: Tensor, size: Tensor, triangle: str) -> Tensor:
    r"""Whether each of the matrices (f, n, n) is singular up to rounding of entries that are of this size.

    The smallest e for which some |E| <= e size makes system + E singular is about 1 / rho(|system^-1| size), rho the
    largest eigenvalue (Demmel, SIAM J. Matrix Anal. Appl. 13, 1992). Units of states do not change it, as they
    do a condition number: a companion matrix with entries from 1 to 10^24 is as good as any.
    """
    if triangle:
        distance = system.diagonal(dim1=-2, dim2=-1).abs() / size.diagonal(dim1=-2, dim2=-1)
        return ~(distance > _POLE).all(-1)
    inverse, info = torch.linalg.inv_ex(system)
    growth = inverse.abs() @ size
    bound = growth.sum(-1).amax(-1)  # rho is no larger
    singular = (info != 0) | ~torch.isfinite(bound)
    near = ~singular & (bound > 1 / _POLE)
    if bool(near.any()):
        singular[near] = torch.linalg.eigvals(growth[near]).abs().amax(-1) > 1 / _POLE
    return singular


def roots_of_unity(length: int) -> Complex[Tensor, " f"]:
    """w[k] = e^(-2 pi i k / length) for k = 0 ... length // 2, the nodes of `rfft`; -i and -1 exactly."""
    k = torch.arange(length // 2 + 1, dtype=torch.float64)
    w = torch.polar(torch.ones_like(k), -2 * math.pi * k / length)
    if length % 2 == 0:
        w[length // 2] = -1
    if length % 4 == 0:
        w[length // 4] = torch.tensor(-1j)
    return w


def spectrum(
    A: Float[Tensor, "n n"],
    B: Float[Tensor, "n p"],
    C: Float[Tensor, "q n"],
    length: int,
    *,
    name: str,
) -> Complex[Tensor, "f q p"]:
    r"""rfft of the kernel's first `length` values, without the kernel.

        sum_{l < L} C A^l B w^l = C (1 - A^L) (1 - w A)^-1 B        where w^L = 1

    S4 (arXiv:2111.00396), section 3.2. With C in the place of C~ = C (1 - A^L) it would be the whole infinite kernel,
    folded onto itself: wrong by what has not decayed after L steps.
    """
    cut = C - C @ torch.linalg.matrix_power(A, length)
    w = roots_of_unity(length).to(A.device)
    return resolvent(A, B, cut, w.conj(), name=name) * w.conj()[:, None, None]
