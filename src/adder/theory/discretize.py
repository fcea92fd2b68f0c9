"""From the differential equation to the recurrence: dx/dt = A x + B u becomes h[t] = Abar h[t-1] + Bbar x[t].

Step t lasts from time t dt to (t + 1) dt, and h[t] is the state at its end. A method says what the input
does during the step, or how the step is approximated:

    zoh             u = x[t] all through the step: exact for inputs that are constant between samples
    foh             u runs straight from x[t-1] to x[t]: exact for inputs that are linear between samples
    bilinear        the trapezoidal rule with u = x[t], as in S4
    euler           the slope at the start of the step
    backward_euler  the slope at its end

A first-order hold needs two samples, so it is no h[t] = Abar h[t-1] + Bbar x[t] of the state at a sample.
With Gamma_1 = dt phi_1(A dt) B and Gamma_2 = dt phi_2(A dt) B, what it does is

    h[t] = Abar h[t-1] + (Gamma_1 - Gamma_2) x[t-1] + Gamma_2 x[t]

Each sample is a triangle that rises for one step and falls for one. `discretize` gives

    Bbar = Gamma_1 - Gamma_2 + Abar Gamma_2 = dt phi_1(A dt)^2 B

all that the triangle of one sample leaves in the state when it has ended, one step after the sample;
scipy.signal.cont2discrete gives the same Abar and Bbar. So with s[t] = Abar s[t-1] + Bbar x[t] the state at
sample t, where the triangle is at its height, is h[t] = s[t-1] + Gamma_2 x[t]: `StateSpace.discretize` sees to it.
"""

import torch
from jaxtyping import Inexact
from torch import Tensor

from adder.errors import UsageError
from adder.phi import phi1
from adder.theory.checks import TensorLike, exact, one_of, one_step_size, shape, step_size
from adder.theory.exponential import matrix_expm1

METHODS = ("zoh", "bilinear", "euler", "backward_euler", "foh")
_NAME = "discretize"


def discretize(
    A: Inexact[Tensor, "... n"],
    B: Inexact[Tensor, "..."],
    dt: float | Tensor,
    method: str = "zoh",
    *,
    diagonal: bool | None = None,
) -> tuple[Inexact[Tensor, "... n"], Inexact[Tensor, "..."]]:
    r"""Turn dx/dt = A x + B u into h[t] = Abar h[t-1] + Bbar x[t].

        zoh             Abar = e^(dt A)                        Bbar = dt phi_1(dt A) B
        foh             Abar = e^(dt A)                        Bbar = dt phi_1(dt A)^2 B
        bilinear        Abar = (1 - dt/2 A)^-1 (1 + dt/2 A)    Bbar = (1 - dt/2 A)^-1 dt B
        euler           Abar = 1 + dt A                        Bbar = dt B
        backward_euler  Abar = (1 - dt A)^-1                   Bbar = (1 - dt A)^-1 dt B

    with phi_1(z) = (e^z - 1) / z, 1 at zero. No A is inverted: a singular A, with zeros or Jordan blocks, is
    as good as any. The holds of a dense A come out of one exponential of [[A, B], [0, 0]] (Van Loan 1978).
    bilinear and zoh are equations (3) of S4 (arXiv:2111.00396) and (4) of Mamba (arXiv:2312.00752). What a
    first-order hold means for the state is said at the head of this module.

    Args:
        A: (n, n), or a diagonal (n,), real or complex. With `diagonal=True` a diagonal has any axes before n.
        B: (n,) or (n, p) beside a dense A, with p inputs. Beside a diagonal A the shape of A, or what broadcasts
            against it, with no more axes: for p inputs write the diagonal out, `torch.diag(A)`.
        dt: the step, above zero. Beside a diagonal A a tensor will do: the axes of A before n, for instance
            one step for each channel, or whatever broadcasts against A.
        method: one of the five above.
        diagonal: whether A is a diagonal; by default, whether it has one axis.

    Returns:
        Abar and Bbar, float64 or complex128, differentiable in A, B and dt.

    Raises:
        UsageError: a shape, an unknown method, dt not above zero, NaN, a step at which an implicit method has
            no answer (an eigenvalue of A is 2 / dt or 1 / dt), or one so long that e^(dt A) overflows.

    Example:
        >>> A = torch.tensor([[0.0, 1.0], [0.0, 0.0]])  # position and velocity, pushed: A is singular
        >>> Abar, Bbar = discretize(A, torch.tensor([0.0, 1.0]), dt=2.0)
        >>> Abar.tolist(), Bbar.tolist()
        ([[1.0, 2.0], [0.0, 1.0]], [2.0, 2.0])
    """
    one_of(_NAME, "method", method, METHODS)
    a = exact(_NAME, "A", A, may_be_complex=True)
    b = exact(_NAME, "B", B, may_be_complex=True)
    if a.ndim == 0 or a.numel() == 0:
        raise UsageError(f"{_NAME}: A has shape {shape(a)}, expected (n, n) or (n,) with n >= 1")
    if diagonal is None:
        diagonal = a.ndim == 1
    result = _diagonal(a, b, dt, method) if diagonal else _dense(a, b, dt, method)
    for x in result:
        if not bool(torch.isfinite(x).all()):
            raise UsageError(
                f"{_NAME}: {method} overflows at this dt: A has eigenvalues that grow too fast, "
                "or that equal 2 / dt (bilinear) or 1 / dt (backward_euler); take a smaller dt"
            )
    return result


def first_order_hold(A: Tensor, B: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Abar, and what x[t-1] and x[t] each add to h[t] while the input runs from one to the other.

    Dense A (n, n) and B (n, p): Abar (n, n), Gamma_1 - Gamma_2 (n, p), Gamma_2 (n, p).
    """
    n, p = B.shape
    system = A.new_zeros(n + 2 * p, n + 2 * p, dtype=torch.promote_types(A.dtype, B.dtype))
    system = torch.cat(
        [
            torch.cat([A * dt, B * dt, system[:n, n + p :]], dim=1),
            torch.cat([system[n : n + p, : n + p], torch.eye(p).to(system)], dim=1),
            system[n + p :],
        ]
    )
    E = matrix_expm1(system)[:n]
    whole, rising = E[:, n : n + p], E[:, n + p :]
    return E[:, :n] + torch.eye(n).to(E), whole - rising, rising


def _hold(A: Tensor, B: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """e^(dt A) and dt phi_1(dt A) B."""
    n, p = B.shape
    E = matrix_expm1(torch.cat([torch.cat([A, B], dim=1) * dt, A.new_zeros(p, n + p)]))
    return E[:n, :n] + torch.eye(n).to(E), E[:n, n:]


def _dense(A: Tensor, B: Tensor, dt: TensorLike, method: str) -> tuple[Tensor, Tensor]:
    n = A.shape[-1]
    if A.ndim != 2 or A.shape[0] != n:
        raise UsageError(
            f"{_NAME}: A has shape {shape(A)}, expected (n, n); for diagonals with more axes say diagonal=True"
        )
    if B.ndim not in (1, 2) or B.shape[0] != n:
        raise UsageError(f"{_NAME}: B has shape {shape(B)}, expected ({n},) or ({n}, inputs)")
    step = one_step_size(_NAME, dt)
    dtype = torch.promote_types(A.dtype, B.dtype)
    a, columns = A.to(dtype), (B[:, None] if B.ndim == 1 else B).to(dtype)
    identity = torch.eye(n, dtype=dtype, device=A.device)
    if method in ("zoh", "foh"):
        Abar, Bbar = _hold(a, columns, step)
        if method == "foh":  # a triangle is a box held by a box
            Bbar = _hold(a, Bbar / step, step)[1]
    elif method == "euler":
        Abar, Bbar = identity + step * a, step * columns
    else:
        half = step / 2 if method == "bilinear" else step
        explicit = identity + half * a if method == "bilinear" else identity
        both, singular = torch.linalg.solve_ex(
            identity - half * a, torch.cat([explicit, step * columns], dim=1)
        )
        if bool(singular):
            both = both * torch.inf
        Abar, Bbar = both[:, :n], both[:, n:]
    return Abar, Bbar.reshape(B.shape)


def _diagonal(A: Tensor, B: Tensor, dt: TensorLike, method: str) -> tuple[Tensor, Tensor]:
    if B.ndim > A.ndim:
        raise UsageError(
            f"{_NAME}: B has shape {shape(B)}, expected {shape(A)}: a diagonal A takes B of A's shape "
            "(a dense one, such as torch.diag(A), takes several inputs)"
        )
    step = step_size(_NAME, dt)
    if step.ndim and step.shape == A.shape[:-1]:
        step = step[..., None]
    try:
        shapes = torch.broadcast_shapes(A.shape, step.shape, B.shape)
    except RuntimeError:
        shapes = torch.Size()
    if B.ndim == 0 or not shapes or shapes[-1] != A.shape[-1]:
        raise UsageError(
            f"{_NAME}: diagonal A has shape {shape(A)}, B {shape(B)} and dt {shape(step)}: "
            "they do not broadcast to (..., n)"
        )
    z = A * step
    if method in ("zoh", "foh"):
        hold = phi1(z)
        return z.exp(), step * (hold if method == "zoh" else hold * hold) * B
    if method == "euler":
        return 1 + z, step * B + torch.zeros_like(z)
    if method == "bilinear":
        return (1 + z / 2) / (1 - z / 2), step / (1 - z / 2) * B
    return 1 / (1 - z), step / (1 - z) * B
