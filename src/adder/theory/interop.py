"""To and from scipy.signal and python-control, whose state in discrete time is one step behind ours.

    ours      h[t] = A h[t-1] + B x[t]        y[t] = C h[t] + D x[t]
    theirs    z[t+1] = A z[t] + B x[t]        y[t] = C' z[t] + D' x[t]

Their z[t] is our h[t-1]: the state before x[t] came in. Put into our equation for y, this is

    C' = C A,        D' = D + C B

which always exists. The way back needs a C with C A = C', and D = D' - C B. Where A can be inverted without
losing digits that is what is done, and a system that went there returns as it was. Where it cannot (a delay,
a stiff system), x[t] is kept in p more states: h[t] = (z[t], x[t]) and

    h[t] = [[A, B], [0, 0]] h[t-1] + [0, 1] x[t]        y[t] = [C', 0] h[t] + D' x[t]

In both cases inputs and outputs are the same numbers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adder.errors import UsageError
from adder.theory.checks import exact

if TYPE_CHECKING:
    from adder.theory.linear_system import LinearSystem

Matrices = tuple[Tensor, Tensor, Tensor, Tensor]
# C = C' A^-1 is rounded to this many times eps of the outputs, or not taken.
_LOSS = 500.0


def state_before(A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Matrices:
    """From our convention to theirs."""
    return A, B, C @ A, D + C @ B


def state_after(A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Matrices:
    """From their convention to ours, with n states, or n + p."""
    ours, singular = torch.linalg.solve_ex(A, C, left=False)
    if not bool(singular) and bool(torch.isfinite(ours).all()):
        spread = (ours.abs() @ A.abs()).amax(-1) + (ours.abs() @ B.abs()).amax(-1)
        seen = C.abs().amax(-1)
        if bool((spread <= _LOSS * seen).all()):
            return A, B, ours, D - ours @ B
    return remembering(A, B, torch.zeros_like(B), C, D)


def remembering(A: Tensor, before: Tensor, now: Tensor, C: Tensor, D: Tensor) -> Matrices:
    """Ours for z[t] = A z[t-1] + before x[t-1] + now x[t] and y[t] = C z[t] + D x[t]: p more states hold x[t]."""
    n, p = before.shape
    identity = torch.eye(p, dtype=A.dtype, device=A.device)
    return (
        torch.cat([torch.cat([A, before], dim=1), A.new_zeros(p, n + p)]),
        torch.cat([now, identity]),
        torch.cat([C, torch.zeros_like(D)], dim=1),
        D,
    )


def library(method: str, module: str, package: str, install: str | None = None) -> Any:
    """An optional library, or one line that says what to install."""
    try:
        return import_module(module)
    except ImportError:
        raise UsageError(
            f"{method}: {package} is not installed: pip install '{install or package}'"
        ) from None


def arrays(matrices: Matrices) -> list[Any]:
    """As NumPy arrays, without gradients."""
    return [x.detach().cpu().numpy().copy() for x in matrices]


def matrices_of_scipy(method: str, system: Any) -> tuple[Matrices, Any]:
    """A, B, C, D and dt of a scipy.signal StateSpace, TransferFunction or ZerosPolesGain."""
    if not hasattr(system, "to_ss"):
        raise UsageError(
            f"{method}: got {type(system).__name__}, expected scipy.signal's StateSpace, TransferFunction "
            "or ZerosPolesGain"
        )
    try:
        form = system.to_ss()
    except ValueError as error:
        raise UsageError(f"{method}: scipy.signal finds no state space form: {error}") from None
    return _exact(method, form), form.dt


def matrices_of_control(method: str, system: Any) -> tuple[Matrices, Any]:
    """A, B, C, D and dt of a python-control StateSpace or TransferFunction."""
    control = library(method, "control", "control")
    if not isinstance(system, control.StateSpace | control.TransferFunction):
        raise UsageError(
            f"{method}: got {type(system).__name__}, expected control's StateSpace or TransferFunction"
        )
    try:
        form = control.ss(system)
    except (ImportError, NotImplementedError, ValueError) as error:
        raise UsageError(f"{method}: python-control finds no state space form: {error}") from None
    if form.nstates == 0:
        form = control.ss([[0.0]], [[0.0] * form.ninputs], [[0.0]] * form.noutputs, form.D, form.dt)
    return _exact(method, form), form.dt


def _exact(method: str, form: Any) -> Matrices:
    a, b, c, d = (exact(method, letter, getattr(form, letter)) for letter in "ABCD")
    return a, b, c, d


def scipy_system(method: str, matrices: Matrices, dt: float | None) -> Any:
    """A scipy.signal.StateSpace, in continuous time or with a step."""
    signal = library(method, "scipy.signal", "scipy")
    return signal.StateSpace(*arrays(matrices), **({} if dt is None else {"dt": dt}))


def control_system(method: str, matrices: Matrices, dt: float) -> Any:
    """A control.StateSpace; dt 0 is continuous time."""
    return library(method, "control", "control").ss(*arrays(matrices), dt)


def discrete_step(method: str, dt: Any, elsewhere: str) -> float:
    """The step of a system in discrete time; True, a step that is not said, is 1."""
    if dt is None or (dt == 0 and dt is not False):
        raise UsageError(f"{method}: the system is in continuous time: use {elsewhere}")
    return 1.0 if dt is True else float(dt)


def continuous(method: str, dt: Any, elsewhere: str) -> None:
    """Refuse a system in discrete time."""
    if dt is not None and (dt is True or dt != 0):
        raise UsageError(f"{method}: the system is in discrete time (dt = {dt}): use {elsewhere}")


def same_form(system: "LinearSystem") -> Matrices:
    """The four matrices."""
    return system.A, system.B, system.C, system.D
