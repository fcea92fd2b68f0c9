"""What a HiPPO state means: the past, projected on the functions of a measure, and drawn again from the state.

    x_n(t) = integral of u(t - s) phi_n(s) w(s) ds        u(t - s) ~ sum_n x_n(t) phi_n(s)

s is how long ago; w is the weight that the measure gives to it, and phi_n are orthonormal under w. With the unit
of time of `hippo` (its window):

    legs      w = e^-s                 phi_n = sqrt(2n+1) P_n(2 e^-s - 1)
              w = 1 / T for s < T      phi_n = sqrt(2n+1) P_n(1 - 2 s / T)        the whole past T = t, growing
    legt      w = 1 for s < 1          phi_n = sqrt(2n+1) P_n(1 - 2 s)
    lagt      w = e^(-beta s)          phi_n = L_n(s) e^(-(1 - beta) s / 2)
    fourier   w = 1 for s < 1          phi_n = 1, sqrt(2) cos(2 pi k s), sqrt(2) sin(2 pi k s)

P_n are Legendre's polynomials, L_n Laguerre's. legs and lagt are exact: the state is the projection. For legt and
fourier the equation needs u at the end of the window, which has left the state; the state's own
account of it stands in for it, so the state is the projection up to an error that falls as n grows.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from adder.errors import UsageError
from adder.theory.checks import TensorLike, came, exact, one_of, positive, shape, whole
from adder.theory.discretize import discretize
from adder.theory.exponential import matrix_expm1
from adder.theory.hippo import beta_of, fourier_functions, hippo, whole_name

REMEMBERED = ("legs", "legt", "lagt", "fourier")
_BLOCK = 1 << 22


def project(
    u: TensorLike,
    measure: str,
    n: int,
    *,
    dt: float = 1.0,
    window: float | None = None,
    beta: float | None = None,
) -> Float[Tensor, "*b l n"]:
    r"""Project the past of a signal on the functions of a measure, at every step: online, by one recurrence.

    u[t] is held all through step t. Nothing else is approximated: the recurrence is the zero-order hold of

        dx/dt = (A x + B u) / window        or, for legs without a window,        dx/dt = (A x + B u) / t

    The second has no constant matrices, but in ln t it has: from t to t + dt the state moves as under the first for
    ln((t + dt) / t). It starts at the first sample, whose projection is (u[0], 0, 0, ...).
    HiPPO (arXiv:2008.07669), sections 2.3 and 2.4.

    Args:
        u: samples (..., l), dt apart.
        measure: legs, legt, lagt or fourier.
        n: how many functions.
        window: the unit of time: how long legt and fourier look back, and the time in which legs and lagt fade by e.
            None is for legs alone: the whole past, evenly.
        beta: for lagt, as in `hippo`.

    Returns:
        The state after each step, (..., l, n); the last one is `[..., -1, :]`. `reconstruct` draws the past from it.

    Raises:
        UsageError: an unknown measure, no window where one is needed, an empty signal, NaN.

    Example:
        >>> project([3.0, 3.0, 3.0], "legs", 2).round(decimals=12).abs().tolist()  # a constant is its own mean
        [[3.0, 0.0], [3.0, 0.0], [3.0, 0.0]]
    """
    x = exact("project", "u", u)
    if x.ndim == 0 or x.numel() == 0:
        raise UsageError(f"project: u has shape {shape(x)}, expected (..., l) with l >= 1")
    n, dt = whole("project", "n", n), positive("project", "dt", dt)
    measure, _, _ = _memory("project", measure, window, dt if window is None else None, beta)
    if window is None:
        return _project_all(x, *hippo(measure, n))
    A, B = hippo(measure, n, window=window, beta=beta)
    Abar, Bbar = discretize(A, B, dt)
    h, states = x.new_zeros(*x.shape[:-1], n), []
    for now in x.unbind(-1):
        h = h @ Abar.mT + now[..., None] * Bbar
        states.append(h)
    return torch.stack(states, dim=-2)


def _project_all(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    n, length = A.shape[0], x.shape[-1]
    h = torch.cat([x[..., :1], x.new_zeros(*x.shape[:-1], n - 1)], dim=-1)
    states = [h]
    system = torch.cat([torch.cat([A, B[:, None]], dim=1), A.new_zeros(1, n + 1)])
    count = max(1, _BLOCK // system.numel())
    for start in range(1, length, count):
        t = torch.arange(start, min(start + count, length), dtype=A.dtype)
        E = matrix_expm1(torch.log1p(1 / t)[:, None, None] * system)
        for k, step in zip(range(start, length), E, strict=False):
            h = h + h @ step[:n, :n].mT + x[..., k, None] * step[:n, n]
            states.append(h)
    return torch.stack(states, dim=-2)


def reconstruct(
    state: Float[Tensor, "*b n"],
    measure: str,
    ago: TensorLike,
    *,
    window: float | None = None,
    elapsed: float | None = None,
    beta: float | None = None,
) -> Float[Tensor, "*b times"]:
    """Draw the past from a state: u(now - ago) ~ sum_n state_n phi_n(ago).

    Args:
        state: (..., n), as `project` returns it.
        measure, window, beta: as they were there.
        ago: (times,), how long before the end of the last step; 0 or more, and within the window where it has an end.
        elapsed: for legs without a window, how long the signal has lasted, l dt.

    Raises:
        UsageError: times outside of what is remembered; a window or `elapsed` that is missing, or both; a beta beside
            a measure that has none.

    Example:
        >>> ramp = project(torch.arange(1000.0), "legs", 3)[-1]
        >>> reconstruct(ramp, "legs", [0.5, 500.5], elapsed=1000.0).round(decimals=3).tolist()
        [999.0, 499.0]
    """
    name = "reconstruct"
    x = exact(name, "state", state)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise UsageError(f"{name}: state has shape {shape(x)}, expected (..., n) with n >= 1")
    phi = _basis(name, measure, x.shape[-1], ago, window, elapsed, beta)
    return x @ phi.to(x.device).mT


def basis(
    measure: str,
    n: int,
    ago: TensorLike,
    *,
    window: float | None = None,
    elapsed: float | None = None,
    beta: float | None = None,
) -> Float[Tensor, "times n"]:
    """phi_0 ... phi_{n-1} at times `ago`, (times, n), as at the head of this module. Arguments as in `reconstruct`.

    Without a window and without `elapsed` the window is 1.
    """
    if window is None and elapsed is None:
        window = 1.0
    return _basis("basis", measure, whole("basis", "n", n), ago, window, elapsed, beta)


def _basis(
    name: str,
    measure: str,
    n: int,
    ago: TensorLike,
    window: float | None,
    elapsed: float | None,
    beta: float | None,
) -> Tensor:
    measure, unit, tilt = _memory(name, measure, window, elapsed, beta)
    s = exact(name, "ago", ago).reshape(-1) / unit
    ends = window is None or measure in ("legt", "fourier")
    if bool((s < 0).any()) or (ends and bool((s > 1).any())):
        limit = f" to {unit:g}" if ends else " or more"
        raise UsageError(
            f"{name}: ago is {float(s.min()) * unit:g} to {float(s.max()) * unit:g}, "
            f"expected what {measure} knows, times from 0{limit}"
        )
    if measure == "fourier":
        frequency, cosine = fourier_functions(n)
        angle = 2 * math.pi * s[:, None] * frequency
        phi = math.sqrt(2) * torch.where(cosine, angle.cos(), angle.sin())
        return torch.cat([torch.ones_like(phi[:, :1]), phi[:, 1:]], dim=1)
    if measure == "lagt":
        return _laguerre(n, s) * torch.exp(-(1 - tilt) / 2 * s)[:, None]
    fading = measure == "legs" and window is not None
    return _legendre(n, 2 * (-s).exp() - 1 if fading else 1 - 2 * s)


def weight(
    measure: str,
    ago: TensorLike,
    *,
    window: float | None = None,
    elapsed: float | None = None,
    beta: float | None = None,
) -> Float[Tensor, " times"]:
    """w at times `ago`, how much each counts, per unit of time: under it `basis` of the same options is orthonormal."""
    if window is None and elapsed is None:
        window = 1.0
    measure, unit, tilt = _memory("weight", measure, window, elapsed, beta)
    s = exact("weight", "ago", ago).reshape(-1) / unit
    if window is None or measure in ("legt", "fourier"):
        return ((s >= 0) & (s <= 1)).to(s.dtype) / unit
    rate = 1.0 if measure == "legs" else tilt
    return torch.exp(-rate * s) * (s >= 0) / unit


class Memory(NamedTuple):
    """What a state remembers: for each sample how long ago it was, what it was, what is drawn, and its weight."""

    ago: Float[Tensor, " l"]
    signal: Float[Tensor, " l"]
    remembered: Float[Tensor, " l"]
    weight: Float[Tensor, " l"]


def remember(
    u: Float[Tensor, " l"],
    measure: str,
    n: int,
    *,
    dt: float = 1.0,
    window: float | None = None,
    beta: float | None = None,
) -> Memory:
    """Read a signal, keep n numbers, and draw the signal from them: the data of a figure that shows what is kept.

    With legs and a window the recent past comes out sharp and the distant past is lost; without one all of it comes
    out equally sharp. legt and fourier know nothing before the window: there `remembered` is NaN.
    Samples are drawn at the middles of their steps. Arguments as in `project`.

    Example:
        >>> t = torch.arange(2000, dtype=torch.float64) / 100
        >>> memory = remember(torch.sin(3 * t), "legs", 32, dt=0.01, window=2.0)
        >>> error = (memory.remembered - memory.signal).abs()
        >>> bool(error[memory.ago < 2].max() < 0.05), bool(error[memory.ago > 15].max() > 0.5)
        (True, True)
    """
    signal = exact("remember", "u", u)
    if signal.ndim != 1:
        raise UsageError(f"remember: u has shape {shape(signal)}, expected (l,)")
    length = len(signal)
    if length == 0:
        raise UsageError("remember: u has shape (0,), expected (l,) with l >= 1")
    n, dt = whole("remember", "n", n), positive("remember", "dt", dt)
    elapsed = length * dt if window is None else None
    measure, unit, _ = _memory("remember", measure, window, elapsed, beta)
    state = project(signal, measure, n, dt=dt, window=window, beta=beta)[-1]
    ago = dt * (length - 0.5 - torch.arange(length, dtype=signal.dtype))
    known = torch.ones_like(ago, dtype=torch.bool)
    if measure in ("legt", "fourier"):
        known = ago <= unit
    drawn = torch.full_like(signal, torch.nan)
    drawn[known] = reconstruct(
        state, measure, ago[known], window=window, elapsed=elapsed, beta=beta
    )
    counted = weight(measure, ago, window=window, elapsed=elapsed, beta=beta)
    return Memory(ago, signal, drawn, counted)


def _memory(
    name: str, measure: str, window: float | None, elapsed: float | None, beta: float | None
) -> tuple[str, float, float]:
    """The measure by its first name, its unit of time, which `window` or `elapsed` says, and beta."""
    measure = one_of(name, "measure", whole_name(measure), REMEMBERED)
    tilt = beta_of(name, measure, beta)
    if window is not None:
        if elapsed is not None:
            raise UsageError(
                f"{name}: window is {came(window)} and elapsed is {came(elapsed)}, expected one of the two: "
                "a window that fades or ends, or, for legs, all of the signal"
            )
        return measure, positive(name, "window", window), tilt
    if measure != "legs":
        raise UsageError(f"{name}: {measure} needs a window, the time that it looks back")
    if elapsed is None:
        raise UsageError(
            f"{name}: say how long legs looks back: elapsed (all of the signal) or window (fading by e)"
        )
    return measure, positive(name, "elapsed", elapsed), tilt


def _legendre(n: int, z: Tensor) -> Tensor:
    """sqrt(2k+1) P_k(z) for k < n, by the three-term recurrence."""
    values = [torch.ones_like(z), z]
    for k in range(1, n - 1):
        values.append(((2 * k + 1) * z * values[-1] - k * values[-2]) / (k + 1))
    scale = torch.sqrt(2 * torch.arange(n, dtype=z.dtype, device=z.device) + 1)
    return torch.stack(values[:n], dim=-1) * scale


def _laguerre(n: int, s: Tensor) -> Tensor:
    """L_k(s) for k < n, by the three-term recurrence."""
    values = [torch.ones_like(s), 1 - s]
    for k in range(1, n - 1):
        values.append(((2 * k + 1 - s) * values[-1] - k * values[-2]) / (k + 1))
    return torch.stack(values[:n], dim=-1)
