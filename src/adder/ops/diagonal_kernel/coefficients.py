"""Between parameters and powers, in double precision whatever the parameters are stored in.

    z, s = hold(A, dt)        K[l] = Re sum_j w_j z_j^l        w = f C s B        f = 2 for complex pairs, else 1

Every implementation has this algebra over (h m) in common, and makes two products of its own:

    forward(z, w, length, dtype) -> K         (c h l) = Re sum_j w_j z_j^l
    moments(z, dK) -> P0, P1                  (c h m) = sum_l dK[l] z_j^l,  sum_l l dK[l] z_j^(l-1)
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adder.ops.checks import expect_positive
from adder.phi import phi1, phi1_derivative

Forward = Callable[[Tensor, Tensor, int, torch.dtype], Tensor]
Moments = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

METHODS = ("zoh", "bilinear", "dss")


class Hold(NamedTuple):
    """One step of each mode (h m): its power z and the weight s of its input, Bbar = s B.

    `backwards` (h m): the modes whose powers are read from the end, K[l] having z^(length-1-l).
    """

    z: Tensor
    s: Tensor
    backwards: Tensor | None = None


class Slopes(NamedTuple):
    """The derivatives of a Hold: all are (h m), and holomorphic in A and dt."""

    z_by_a: Tensor
    z_by_dt: Tensor
    s_by_a: Tensor
    s_by_dt: Tensor


def kernel(
    forward: Forward, A: Tensor, B: Tensor, C: Tensor, dt: Tensor, length: int, method: str
) -> Tensor:
    """Return K (c h l) in the real type of C."""
    given, dtype = (wide(A), wide(B), wide(C), wide(dt)), C.dtype.to_real()
    A, B, C, dt = (*given[:3], _by_mode(given[3]))
    _refuse_impossible(A, dt, method)
    z, s, backwards = hold(A, dt, length, method)
    w = _both(A) * C * (s * B)
    if backwards is None:
        return forward(z, w, length, dtype)
    ahead = forward(z, torch.where(backwards, 0, w), length, dtype)
    return ahead + forward(z, torch.where(backwards, w, 0), length, dtype).flip(-1)


def gradients(
    moments: Moments,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    length: int,
    method: str,
    dK: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of A, B, C, dt for a gradient dK (c h l), each in the type of what it belongs to.

    A complex gradient is dL/dRe + i dL/dIm, the conjugate of the derivative. Conjugates are written out: a lazy
    one inside an operator is forgotten under torch.compile.
    """
    types, by_channel = (A.dtype, B.dtype, C.dtype, dt.dtype), dt.ndim == 1
    A, B, C, dt = wide(A), wide(B), wide(C), _by_mode(wide(dt))
    z, s, backwards = hold(A, dt, length, method)
    slopes = slopes_of(A, dt, length, method)
    P0, P1 = moments(z, dK)
    if backwards is not None:
        Q0, Q1 = moments(z, dK.flip(-1).contiguous())
        P0, P1 = torch.where(backwards, Q0, P0), torch.where(backwards, Q1, P1)
    both = _both(A)
    U0, U1 = both * (C * P0).sum(0), both * (C * P1).sum(0)
    dA = B * (U0 * slopes.s_by_a + s * U1 * slopes.z_by_a)
    ddt = _real(B * (U0 * slopes.s_by_dt + s * U1 * slopes.z_by_dt))
    found = (dA, s * U0, both * (s * B) * P0, ddt.sum(-1) if by_channel else ddt)
    dA, dB, dC, ddt = (
        each.conj_physical().to(dtype).contiguous()
        for each, dtype in zip(found, types, strict=True)
    )
    return dA, dB, dC, ddt


def hold(A: Tensor, dt: Tensor, length: int, method: str) -> Hold:
    """Return what one step does, exact at A = 0 (dss has a pole there)."""
    if method == "zoh":
        x = dt * A
        return Hold(x.exp(), dt * phi1(x))
    if method == "bilinear":
        x = dt * A
        return Hold((1 + x / 2) / (1 - x / 2), dt / (1 - x / 2))
    # Bbar z^l = (B / A) softmax_l(l dt A): from the end where that grows, so that nothing overflows.
    _, x, backwards = _decaying(A, dt)
    return Hold(x.exp(), phi1(x) / (length * A * phi1(length * x)), backwards)


def slopes_of(A: Tensor, dt: Tensor, length: int, method: str) -> Slopes:
    """Return the derivatives of `hold`."""
    if method == "zoh":
        x = dt * A
        z = x.exp()
        return Slopes(dt * z, A * z, dt * dt * phi1_derivative(x), z)
    if method == "bilinear":
        x = dt * A
        each = (1 - x / 2) ** -2
        return Slopes(dt * each, A * each, dt * dt / 2 * each, each)
    sign, x, _ = _decaying(A, dt)
    z, one, all_ = x.exp(), phi1(x), phi1(length * x)
    ratio = one / all_
    by_x = (phi1_derivative(x) - ratio * length * phi1_derivative(length * x)) / all_
    by_A = (sign * dt * by_x - ratio / A) / (length * A)
    return Slopes(sign * dt * z, sign * A * z, by_A, sign * by_x / length)


def wide(x: Tensor) -> Tensor:
    """Return x in double precision, no conjugate left to be taken."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64).resolve_conj()


def _decaying(A: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return sign, sign dt A with no positive real part, and which modes were turned around, None for none."""
    backwards = _real(A) > 0
    sign = torch.where(backwards, -1.0, 1.0)
    some = A.device.type != "cpu" or bool(
        backwards.any()
    )  # elsewhere, looking would cost a synchronisation
    return sign, sign * dt * A, backwards if some else None


def _refuse_impossible(A: Tensor, dt: Tensor, method: str) -> None:
    """Refuse values without a kernel, on a CPU: elsewhere, looking would cost a synchronisation."""
    expect_positive("diagonal_kernel", "dt", dt)
    if A.device.type == "cpu" and method == "dss" and bool((A == 0).any()):
        h, m = (int(i) for i in (A == 0).nonzero()[0])
        raise ValueError(
            f"diagonal_kernel: A[{h}, {m}] is 0, where method 'dss' has a pole (it divides by A)"
        )


def _by_mode(dt: Tensor) -> Tensor:
    return dt.unsqueeze(-1) if dt.ndim == 1 else dt


def _both(A: Tensor) -> int:
    return 2 if A.is_complex() else 1


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x
