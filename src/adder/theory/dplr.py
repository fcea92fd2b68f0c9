"""S4's form of a HiPPO matrix: normal plus low rank, in the coordinates where the normal part is diagonal."""

from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from adder.errors import UsageError
from adder.theory.checks import whole
from adder.theory.hippo import hippo_parts
from adder.theory.normal import conjugate_pairs, with_phase_of


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

    S4 (arXiv:2111.00396), theorem 1 and appendix C.1; P and Q are one (SaShiMi, arXiv:2202.09729, section 3.1), so that A
    stays stable whatever P is. The eigenvectors are those of the skew-symmetric part, found by `eigh` to the last
    digit. The eigenvectors of A itself are of no use: their condition number grows as 2^(4n/3) (S4, lemma 3.2).

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
