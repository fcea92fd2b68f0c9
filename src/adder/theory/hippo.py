"""HiPPO: matrices whose state holds the best polynomial (or trigonometric) account of the past.

    dx/dt = A x + B u,        u(t - s) ~ sum_n x_n(t) phi_n(s)

A measure says how much each moment of the past counts, phi_n are orthonormal under it, and A and B follow
(HiPPO, arXiv:2008.07669; S4, arXiv:2111.00396; How to Train Your HiPPO, arXiv:2206.12037). `memory.py` has
the functions phi_n, and projects and reconstructs. Each A is normal plus low rank:

    A = S + c - P^T P,        S skew-symmetric, c a number, P (r, n)

    measure         c         r   weight of the past, s ago       phi_n(s)
    legs            -1/2      1   e^-s                            Legendre in e^-s
    legt            0         2   1 for s < 1                     Legendre
    lagt            -beta/2   1   e^(-beta s)                     Laguerre, times e^(-(1 - beta) s / 2)
    fourier         0         1   1 for s < 1                     1, sqrt(2) cos, sqrt(2) sin
    fourier_decay   0         1   2/3 for s < 1, then a third     as fourier
                                  of that, and so on
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from adder.errors import UsageError
from adder.theory.checks import came, one_of, positive, real, whole
from adder.theory.normal import conjugate_pairs, with_phase_of

MEASURES = ("legs", "legt", "lagt", "fourier", "fourier_decay")
ALIASES = {"fout": "fourier"}
DIAGONALS = ("legs", "lin", "inv", "inv2", "quad", "real", "rand")


class Parts(NamedTuple):
    """A and B as published, and what makes A + P^T P - shift skew-symmetric."""

    A: Tensor
    B: Tensor
    shift: float
    P: Tensor


def hippo(
    measure: str, n: int, *, window: float = 1.0, beta: float | None = None
) -> tuple[Float[Tensor, "n n"], Float[Tensor, " n"]]:
    r"""Return A (n, n) and B (n,) of dx/dt = A x + B u, in float64: A with no eigenvalue right of the imaginary axis.

        legs           A[n, k] = -sqrt((2n+1)(2k+1)) for n > k, -(n+1) for n = k, 0 above;  B[n] = sqrt(2n+1)
        legt           A[n, k] = -sqrt((2n+1)(2k+1)) for n >= k, and times (-1)^(n-k) above;  B[n] = sqrt(2n+1)
        lagt           A[n, k] = -1 for n > k, -(1+beta)/2 for n = k, 0 above;  B[n] = 1
        fourier        A = R - 2 f f^T, B = 2 f;  fourier_decay  A = R - f f^T, B = f
                       R rotates the pairs (cos, sin) of frequency 2 pi k;  f = 1, sqrt(2) for each cos, 0 for each sin

    Source: HiPPO, theorems 1 and 2 and appendix D; S4, appendix C.1; How to Train Your HiPPO for fourier.
    HiPPO-LegS proper is dx/dt = (A x + B u) / t, which weighs the whole past evenly: `memory.py` does it. As a
    constant system, which is S4's use of it, the same A and B weigh the past by e^-s.

    Args:
        measure: legs, legt, lagt, fourier (also called fout) or fourier_decay.
        n: the state size, 1 or more. With an even n the constant of fourier has a partner, sin(0): a state that is
            always zero, with eigenvalue zero. An odd n has no such state.
        window: the unit of time: A and B are divided by it. legt and fourier remember this long; legs and lagt
            fade by 1/e in it. state-spaces/s4 has 2 for legt and fourier.
        beta: for lagt, how the Laguerre functions are tilted: 0, as in S4, or 1, as in theorem 1 of HiPPO.

    Raises:
        UsageError: an unknown measure, a size below 1, a window not above 0, a beta not above -1 or not of lagt.

    Example:
        >>> A, B = hippo("legs", 2)
        >>> A.tolist(), B.tolist()
        ([[-1.0, 0.0], [-1.7320508075688772, -2.0]], [1.0, 1.7320508075688772])
    """
    parts = hippo_parts("hippo", measure, n, window=window, beta=beta)
    return parts.A, parts.B


def whole_name(measure: str) -> str:
    """The name of a measure that may have been given by its other name."""
    return ALIASES.get(measure, measure) if isinstance(measure, str) else measure


def hippo_parts(
    name: str, measure: str, n: int, *, window: float = 1.0, beta: float | None = None
) -> Parts:
    """The matrices of a measure with the P and the shift that make A + P^T P - shift skew-symmetric."""
    measure = one_of(name, "measure", whole_name(measure), MEASURES)
    n = whole(name, "n", n)
    unit = positive(name, "window", window)
    tilt = beta_of(name, measure, beta)
    if measure == "legs":
        parts = _legs(n)
    elif measure == "legt":
        parts = _legt(n)
    elif measure == "lagt":
        parts = _lagt(n, tilt)
    else:
        parts = _fourier(n, 2.0 if measure == "fourier" else 1.0)
    return Parts(parts.A / unit, parts.B / unit, parts.shift / unit, parts.P / math.sqrt(unit))


def beta_of(name: str, measure: str, beta: float | None) -> float:
    """beta as a number, 0 where none is given; refused beside a measure that has none."""
    if beta is None:
        return 0.0
    if measure != "lagt":
        raise UsageError(f"{name}: beta is {came(beta)}, but only lagt has one, not {measure}")
    tilt = real(beta)
    if not -1 < tilt < math.inf:
        raise UsageError(
            f"{name}: beta is {came(beta)}, expected a number above -1: A would not be stable"
        )
    return tilt


def _legs(n: int) -> Parts:
    q = torch.arange(n, dtype=torch.float64)
    r = (2 * q + 1).sqrt()
    return Parts(
        0 - torch.outer(r, r).tril(-1) - torch.diag(q + 1), r, -0.5, r[None] / math.sqrt(2)
    )


def _legt(n: int) -> Parts:
    r = (2 * torch.arange(n, dtype=torch.float64) + 1).sqrt()
    even = (torch.arange(n) % 2 == 0).to(r)
    sign = 2 * even - 1
    outer = torch.outer(r, r)
    A = 0 - outer.tril() - outer.triu(1) * torch.outer(sign, sign)
    return Parts(A, r, 0.0, torch.stack([r * even, r * (1 - even)]))


def _lagt(n: int, beta: float) -> Parts:
    ones = torch.ones(n, dtype=torch.float64)
    A = 0 - torch.outer(ones, ones).tril(-1) - (1 + beta) / 2 * torch.diag(ones)
    return Parts(A, ones, 0.0 - beta / 2, ones[None] / math.sqrt(2))


def _fourier(n: int, gain: float) -> Parts:
    frequency, cosine = fourier_functions(n)
    f = cosine.to(frequency) * math.sqrt(2)
    f[0] = 1.0
    turn = (2 * math.pi * frequency * ~cosine)[1:]
    A = torch.diag(turn, -1) - torch.diag(turn, 1) - gain * torch.outer(f, f)
    return Parts(A, gain * f, 0.0, math.sqrt(gain) * f[None])


def fourier_functions(n: int) -> tuple[Tensor, Tensor]:
    """The frequency of each of n functions, and whether it is a cosine: 1, (sin 0,) cos 1, sin 1, cos 2, ..."""
    i = torch.arange(n)
    if n % 2 == 0:
        return (i // 2).to(torch.float64), i % 2 == 0
    return ((i + 1) // 2).to(torch.float64), (i % 2 == 1) | (i == 0)


def diagonal(
    init: str, n: int, *, B: str = "theory", generator: torch.Generator | None = None
) -> tuple[Complex[Tensor, " m"], Complex[Tensor, " m"]]:
    r"""Return Lambda (n/2,) and B (n/2,) of S4D, one of each conjugate pair, complex128.

        legs  the normal part of HiPPO-LegS, -1/2 + i w_k      lin   -1/2 + i pi k
        inv   -1/2 + i (n/pi) (n/(2k+1) - 1)                   inv2  -1/2 + i (n/pi) (n/(k+1) - 1)
        quad  -1/2 + i (2k+1)^2 / pi                           real  -(k+1)
        rand  -1/2 + i e^g, g normal

    for k = 0 ... n/2 - 1. B is 1, but for legs. Source: S4D (arXiv:2206.11893), section 4, and its authors' code, where
    rand, real and quad are found.

    Im Lambda >= 0 here. Where it is negative (in state-spaces/s4 it is so in `s4.py`, and positive in `s4d.py`) the
    kernel is the same with conjugate B and C.

    Args:
        init: one of the seven.
        n: the state size, even.
        B: for legs. "theory" is V^* B / 2: with B halved the normal part alone answers an input as HiPPO-LegS does,
            as n grows (S4D, theorem 3). "clipped" is what state-spaces/s4 starts from: V^* B with the
            first component of every eigenvector real, Im B cut to [-2, 2]; here that component is positive.
        generator: for rand, where g is drawn from; None means PyTorch's own.

    Raises:
        UsageError: an unknown init or B, an odd n.

    Example:
        >>> Lambda, B = diagonal("lin", 4)
        >>> Lambda.tolist(), B.tolist()
        ([(-0.5+0j), (-0.5+3.141592653589793j)], [(1+0j), (1+0j)])
    """
    one_of("diagonal", "init", init, DIAGONALS)
    one_of("diagonal", "B", B, ("theory", "clipped"))
    n = whole("diagonal", "n", n)
    if n % 2:
        raise UsageError(f"diagonal: n is {n}, expected an even number: states come in pairs")
    k = torch.arange(n // 2, dtype=torch.float64)
    real, one = torch.full_like(k, -0.5), torch.ones_like(k).to(torch.complex128)
    if init == "legs":
        return _diagonal_legs(n, B)
    if init == "real":
        return torch.complex(-(k + 1), torch.zeros_like(k)), one
    if init == "rand":
        imaginary = torch.randn(k.shape, generator=generator, dtype=k.dtype).exp()
    elif init == "lin":
        imaginary = math.pi * k
    elif init == "quad":
        imaginary = (2 * k + 1) ** 2 / math.pi
    else:
        imaginary = n / math.pi * (n / (2 * k + 1 if init == "inv" else k + 1) - 1)
    return torch.complex(real, imaginary), one


def _diagonal_legs(n: int, B: str) -> tuple[Tensor, Tensor]:
    parts = _legs(n)
    w, V = conjugate_pairs((parts.A - parts.A.mT) / 2)
    Lambda = torch.complex(torch.full_like(w, parts.shift), w)
    if B == "theory":
        return Lambda, with_phase_of(V, parts.B).mH @ parts.B.to(V) / 2
    first = torch.zeros_like(parts.B)
    first[0] = 1
    b = with_phase_of(V, first).mH @ parts.B.to(V)
    return Lambda, torch.complex(b.real, b.imag.clamp(-2, 2))
