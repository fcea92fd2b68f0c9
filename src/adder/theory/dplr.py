"""S4's form of a HiPPO matrix, normal plus low rank, and its kernel in the frequency domain.

    A = W (diag(Lambda) - P P^*) W^*,        W = [V, conj V] unitary

Of each conjugate pair one half is kept; `both_halves` writes the other one down. The functions below work with both, in
float64, and are here to be read and to be tested against: `adder.ops.dplr_kernel` is the fast one.
"""

from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from adder.errors import UsageError
from adder.theory.checks import positive, shape, whole
from adder.theory.hippo import diagonal, hippo_parts
from adder.theory.normal import conjugate_pairs, with_phase_of
from adder.theory.views import roots_of_unity

# A node this close to an eigenvalue of the normal part has no sums of its own.
_MEETS = 1e-10


class NPLR(NamedTuple):
    """A = W (diag(Lambda) - P P^*) W^* and B, with W = [V, conj V] unitary, and one of each conjugate pair kept.

    Lambda (m,), P (r, m), B (m,) and V (n, m) are complex128, n = 2 m. Over both halves, Lambda is
    [Lambda, conj Lambda], and P and B likewise; P P^* reaches from one half into the other.
    """

    Lambda: Complex[Tensor, " m"]
    P: Complex[Tensor, "r m"]
    B: Complex[Tensor, " m"]
    V: Complex[Tensor, "n m"]

    def rebuild(self) -> tuple[Float[Tensor, "n n"], Float[Tensor, " n"]]:
        """The dense real A (n, n) and B (n,):  2 Re(V Lambda V^*) - p p^T with p = 2 Re(V P^T);  2 Re(V B)."""
        p = 2 * (self.V @ self.P.mT).real
        A = 2 * (self.V * self.Lambda @ self.V.mH).real - p @ p.mT
        return A, 2 * (self.V @ self.B).real


def nplr(
    measure: str, n: int, rank: int | None = None, *, window: float = 1.0, beta: float | None = None
) -> NPLR:
    r"""Write a HiPPO matrix as normal plus low rank, diagonalised:  A = V (Lambda - P P^*) V^*.

    S4 (arXiv:2111.00396), theorem 1 and appendix C.1. P and Q are one (SaShiMi, arXiv:2202.09729, section 4.1), so
    that A stays stable whatever P becomes. The eigenvectors are those of the skew-symmetric part, found by `eigh`
    to the last digit. Those of A itself are of no use: their entries grow as 2^(4n/3) (S4, lemma 3.2).

    Of each conjugate pair the one with Im Lambda >= 0 is kept, in ascending order. An eigenvector's phase is free; here
    it is the one that makes B real and positive. `state-spaces/s4` keeps Im Lambda <= 0: the same kernel, with
    every C conjugated.

    Args:
        measure, window, beta: as in `hippo`.
        n: the state size, even, because states come in conjugate pairs.
        rank: r, rows of P. legt needs 2, the others 1; more rows are zero. None means as many as needed.

    Returns:
        NPLR(Lambda (m,), P (r, m), B (m,), V (n, m)) in complex128, m = n / 2.

    Raises:
        UsageError: an odd n, or a rank below what the measure needs; and what `hippo` raises.

    Example:
        >>> form = nplr("legs", 64)
        >>> bool((form.rebuild()[0] - hippo("legs", 64)[0]).abs().max() < 1e-12)
        True
    """
    parts = hippo_parts("nplr", measure, n, window=window, beta=beta)
    n = len(parts.B)
    if n % 2:
        raise UsageError(f"nplr: n is {n}, expected an even number: states come in conjugate pairs")
    least = parts.P.shape[0]
    rows = least if rank is None else whole("nplr", "rank", rank)
    if rows < least:
        raise UsageError(f"nplr: rank is {rows}, but {measure} needs at least {least}")
    w, V = conjugate_pairs((parts.A - parts.A.mT) / 2)
    V = with_phase_of(V, parts.B)
    P = torch.cat([parts.P, parts.P.new_zeros(rows - least, n)]).to(V) @ V.conj()
    return NPLR(torch.complex(torch.full_like(w, parts.shift), w), P, V.mH @ parts.B.to(V), V)


def diagonal_plus_low_rank(
    init: str,
    n: int,
    rank: int = 1,
    *,
    scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[Complex[Tensor, " m"], Complex[Tensor, "r m"], Complex[Tensor, " m"]]:
    """Return Lambda, P and B that start a DPLR model from one of S4D's diagonals: P normal, times `scale`.

    For legs this is HiPPO itself, `nplr("legs", n, rank)`. These are the starts dplr-lin, dplr-inv ... of
    state-spaces/s4. init, n, generator: as in `diagonal`.
    """
    rows = whole("diagonal_plus_low_rank", "rank", rank)
    if init == "legs":
        return nplr("legs", n, rows)[:3]
    Lambda, B = diagonal(init, n, generator=generator)
    P = torch.randn(rows, len(B), generator=generator, dtype=torch.complex128)
    return Lambda, scale * P, B


def both_halves(x: Complex[Tensor, "*a m"]) -> Complex[Tensor, "*a n"]:
    """[x, conj x] along the last axis."""
    return torch.cat([x, x.conj()], dim=-1)


def dplr_bilinear(
    Lambda: Complex[Tensor, " m"],
    P: Complex[Tensor, "r m"],
    B: Complex[Tensor, " m"],
    dt: float,
) -> tuple[Complex[Tensor, "n n"], Complex[Tensor, " n"]]:
    """Abar and Bbar of the bilinear method, dense, over both halves."""
    p = both_halves(P)
    A = torch.diag(both_halves(Lambda)) - p.mT @ p.conj()
    identity = torch.eye(A.shape[0], dtype=A.dtype, device=A.device)
    right = torch.cat([identity + dt / 2 * A, dt * both_halves(B)[:, None]], dim=1)
    solved = torch.linalg.solve(identity - dt / 2 * A, right)
    return solved[:, :-1], solved[:, -1]


def truncated(
    C: Complex[Tensor, "*c n"], Abar: Complex[Tensor, "n n"], length: int
) -> Complex[Tensor, "*c n"]:
    """C~ = C (1 - Abar^L): with it the generating function ends after L terms."""
    return C - C @ torch.linalg.matrix_power(Abar, length)


def untruncated(
    Ct: Complex[Tensor, "*c n"], Abar: Complex[Tensor, "n n"], length: int
) -> Complex[Tensor, "*c n"]:
    """C from C~. It costs the digits that 1 - Abar^L is close to singular by."""
    identity = torch.eye(Abar.shape[0], dtype=Abar.dtype, device=Abar.device)
    system = identity - torch.linalg.matrix_power(Abar, length)
    return torch.linalg.solve(system, Ct.reshape(-1, Ct.shape[-1]), left=False).reshape(Ct.shape)


def doubled(
    Ct: Complex[Tensor, "*c n"], Abar: Complex[Tensor, "n n"], length: int
) -> Complex[Tensor, "*c n"]:
    """C~ for twice the length: C (1 - Abar^2L) = C~ (1 + Abar^L)."""
    return Ct + Ct @ torch.linalg.matrix_power(Abar, length)


def dplr_generating_function(
    Lambda: Complex[Tensor, " m"],
    P: Complex[Tensor, "r m"],
    B: Complex[Tensor, " m"],
    C: Complex[Tensor, "*c m"],
    dt: float,
    length: int,
) -> Complex[Tensor, "*c f"]:
    r"""Return rfft of the first L values of K[l] = C Abar^l Bbar (bilinear), by Cauchy sums.

    S4 (arXiv:2111.00396), section 3.2 and appendix C.3. With C~ = C (1 - Abar^L), at w = e^(-2 pi i k / L),

        sum_{l < L} K[l] w^l = C~ (1 - w Abar)^-1 Bbar = dt C~ ((1 - w) - g A)^-1 B,        g = (1 + w) dt / 2

    A is Lambda - P P^*, so with the diagonal R = 1 / ((1 - w) - g Lambda) and the sums <x, y> = sum_n x_n R_n y_n over
    both halves, Woodbury's identity gives, for P of any rank r,

        dt ( <C~, B> - g <C~, P> (1 + g <P^*, P>)^-1 <P^*, B> )

    The papers divide by 1 + w, and at the Nyquist frequency w = -1 of an even L by zero. As it is written here there
    g = 0 and R = 1/2: what is left is dt / 2 C~ B, which is dt Re(sum C~ B) over one half.

    Where w meets an eigenvalue of the normal part, as fourier's 0 does at w = 1, R is infinite though the kernel is
    not: there the dense matrix is solved, in the sense of least squares.

    Args:
        Lambda, P, B: as `nplr` returns them.
        C: one of each conjugate pair, y = 2 Re(C h); any axes in front.
        dt: the step.
        length: L.

    Returns:
        (..., L // 2 + 1); torch.fft.irfft(..., n=L) makes it K.

    Raises:
        UsageError: a length below 1, dt not above zero, shapes that do not fit.

    Example:
        >>> Lambda, P, B, V = nplr("legs", 4)
        >>> dplr_generating_function(Lambda, P, B, C=B.conj(), dt=0.1, length=16).shape
        torch.Size([9])
    """
    name = "dplr_generating_function"
    length, dt = whole(name, "length", length), positive(name, "dt", dt)
    m = Lambda.shape[-1]
    if Lambda.ndim != 1 or P.shape[1:] != (m,) or B.shape != (m,) or C.shape[-1:] != (m,):
        raise UsageError(
            f"{name}: Lambda, P, B and C have shapes {shape(Lambda)}, {shape(P)}, {shape(B)} and {shape(C)}, "
            "expected (m,), (r, m), (m,) and (..., m)"
        )
    Lambda, P, B, C = (x.to(torch.complex128) for x in (Lambda, P, B, C))
    Ct = truncated(both_halves(C), dplr_bilinear(Lambda, P, B, dt)[0], length)
    w = roots_of_unity(length).to(Lambda.device)
    g = (1 + w) * dt / 2
    inverse = (1 - w)[:, None] - g[:, None] * both_halves(Lambda)
    meets = inverse.abs().amin(-1) < _MEETS
    R = 1 / torch.where(meets[:, None], 1, inverse)
    p, b = both_halves(P), both_halves(B)
    cb = torch.einsum("...n,fn,n->...f", Ct, R, b)
    cp = torch.einsum("...n,fn,rn->...fr", Ct, R, p)
    pb = torch.einsum("rn,fn,n->fr", p.conj(), R, b)
    pp = torch.einsum("rn,fn,sn->frs", p.conj(), R, p)
    identity = torch.eye(len(P), dtype=pp.dtype, device=pp.device)
    inner = torch.linalg.solve(identity + g[:, None, None] * pp, pb[..., None])[..., 0]
    values = dt * (cb - g * torch.einsum("...fr,fr->...f", cp, inner))
    if not bool(meets.any()):
        return values
    A = torch.diag(both_halves(Lambda)) - p.mT @ p.conj()
    system = (1 - w)[:, None, None] * torch.eye(2 * m).to(A) - g[:, None, None] * A
    met = torch.linalg.pinv(system[meets], rtol=_MEETS) @ b
    values[..., meets] = dt * Ct @ met.mT
    return values
