"""Linear systems with constant matrices: StateSpace in continuous time, DiscreteStateSpace step by step."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from adder.errors import UsageError
from adder.theory import interop, printing, views
from adder.theory.checks import TensorLike, did_not_overflow, exact, one_of, positive, whole
from adder.theory.discretize import METHODS, discretize, first_order_hold
from adder.theory.exponential import matrix_expm1
from adder.theory.linear_system import LinearSystem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SETTLED = 1e-3  # an infinite response is taken up to where its slowest part has fallen to this
_LONGEST = 1_000_000
_BLOCK = 1 << 22  # entries of the matrices that are exponentiated at once


class StateSpace(LinearSystem):
    r"""A linear system in continuous time, with p inputs and q outputs.

        dx/dt = A x + B u        y = C x + D u

    Args:
        A: (n, n).
        B: (n, p), or (n,) for one input.
        C: (q, n), or (n,) for one output.
        D: (q, p); a number where p = q = 1; None for zero.

    Signals are (l, p) and (l, q), length first, with any axes of a batch before them; a system with one input and one
    output takes and gives (l,) too. Responses are (..., q, p) and lose both axes where p = q = 1. Everything is
    float64 and carries gradients.

    Raises:
        UsageError: a shape that does not fit, complex numbers, NaN.

    Example:
        >>> spring = StateSpace([[0.0, 1.0], [-2.0, -3.0]], [0.0, 1.0], [1.0, 0.0])
        >>> print(spring)
        dx1/dt = x2
        dx2/dt = -2 x1 - 3 x2 + u
        y      = x1
        >>> spring.poles.real.tolist(), spring.is_stable
        ([-1.0, -2.0], True)
        >>> spring.transfer(0.0).item()
        (0.5+0j)
    """

    _border = 0.0

    def _slowness(self, values: Tensor) -> Tensor:
        return values.real

    def discretize(self, dt: float | Tensor, method: str = "zoh") -> "DiscreteStateSpace":
        r"""Return h[t] = Abar h[t-1] + Bbar x[t], y[t] = C h[t] + D x[t], with steps of dt.

        h[t] and y[t] belong to the end of step t, which lasts dt and in which x[t] acts. The methods are those of
        `adder.discretize`, which gives Abar and Bbar; C and D stay as they are, as in S4. scipy.signal.cont2discrete
        gives the state at the start of a step instead: `to_scipy` makes it that, and then it has the same four
        matrices for zoh, euler and backward_euler ("backward_diff"). Its "bilinear" feeds the mean of x[t-1] and
        x[t] to the step; S4's and ours feeds x[t].

        foh: in step t the input runs in a straight line from x[t-1], zero before the first, to x[t], so y[t] is the
        output at sample t, as in scipy.signal's "foh". The state has to remember the last input: h[t] is (x, u) at
        sample t, n + p numbers.

        A tensor dt of one number passes its gradient to the four matrices; the `dt` of the result is a plain number.

        Raises:
            UsageError: as `adder.discretize`.
        """
        name = "StateSpace.discretize"
        one_of(name, "method", method, METHODS)
        number = positive(name, "dt", dt)
        step = exact(name, "dt", dt).reshape(()).to(self.A.device)
        Abar, Bbar = discretize(self.A, self.B, step, method)
        if method != "foh":
            return DiscreteStateSpace(Abar, Bbar, self.C, self.D, number)
        matrices = interop.remembering(*first_order_hold(self.A, self.B, step), self.C, self.D)
        return DiscreteStateSpace(*matrices, number)

    def simulate(
        self,
        u: TensorLike,
        dt: float | Tensor,
        state: TensorLike | None = None,
        method: str = "zoh",
    ) -> Any:
        """Run the system over samples u (..., l, p), dt apart: y (..., l, q), y[t] the output after step t.

        This is `discretize(dt, method).recurrence(u, state)`. With zoh it is exact for an input that is u[t] all
        through step t, from time t dt to (t + 1) dt; with foh for one that runs straight from u[t-1] to u[t].

        Returns:
            y; and (y, state) when a state was given, as everywhere in adder. A state is (..., n), or (..., n + p) for
            foh: pass it on to continue.

        Raises:
            UsageError: as `discretize`; an input or a state that does not fit; a response past the range of float64.
        """
        y, last = self.discretize(dt, method)._recurrence("StateSpace.simulate", u, state, "time")
        return y if state is None else (y, last)

    def transfer(self, s: TensorLike) -> Complex[Tensor, "..."]:
        """C (s - A)^-1 B + D at any complex s: the shape of s, then (q, p) unless both are 1."""
        _, values = self._resolvent("transfer", s)
        return self._entry(values + self.D)

    def times(self, count: int = 200) -> Float[Tensor, " l"]:
        """`count` times from 0 to where the slowest pole has fallen to a thousandth, if the system is stable."""
        return self._times("times", whole("StateSpace.times", "count", count))

    def impulse(self, t: TensorLike | None = None) -> Float[Tensor, "..."]:
        """C e^(A t) B: the output at times t >= 0 after a unit impulse at 0. D's share, an impulse itself, is left out.

        t: any shape; None is `times()`. Returns the shape of t, then (q, p) unless both are 1.
        """
        times = self._given_times("impulse", t)
        E = self._exponentials(times)[..., : self.states, : self.states]
        y = self.C @ (E @ self.B + self.B)
        return self._entry(did_not_overflow("StateSpace.impulse", y, times))

    def step(self, t: TensorLike | None = None) -> Float[Tensor, "..."]:
        """The output at times t >= 0 when the input is 0 before time 0 and 1 from then on; axes as `impulse`."""
        times = self._given_times("step", t)
        E = self._exponentials(times)[..., : self.states, self.states :]
        y = self.C @ E + self.D
        return self._entry(did_not_overflow("StateSpace.step", y, times))

    def dc_gain(self) -> Float[Tensor, "..."]:
        """D - C A^-1 B: what the output settles at under a constant input of 1. A stable system alone settles."""
        self._expect_stable("dc_gain", "it does not settle")
        return self._entry(self.D - self.C @ torch.linalg.solve(self.A, self.B))

    def _times(self, what: str, count: int) -> Tensor:
        self._expect_stable(what, "its response has no end: give the times")
        end = math.log(_SETTLED) / float(self.poles.real[0])
        return torch.linspace(0, end, count, dtype=torch.float64, device=self.A.device)

    def _given_times(self, what: str, t: TensorLike | None) -> Tensor:
        if t is None:
            return self._times(what, 200)
        times = exact(f"StateSpace.{what}", "t", t).to(self.A.device)
        if times.numel() == 0:
            raise UsageError(f"StateSpace.{what}: t has no time in it")
        if bool((times < 0).any()):
            raise UsageError(f"StateSpace.{what}: t is {float(times.min()):g}, expected 0 or more")
        return times

    def _exponentials(self, times: Tensor) -> Tensor:
        """exp(t [[A, B], [0, 0]]) - 1 for each time."""
        system = torch.cat(
            [
                torch.cat([self.A, self.B], 1),
                self.A.new_zeros(self.inputs, self.states + self.inputs),
            ]
        )
        flat = times.reshape(-1, 1, 1)
        parts = flat.split(max(1, _BLOCK // system.numel()))
        E = torch.cat([matrix_expm1(part * system) for part in parts])
        return E.reshape(*times.shape, *system.shape)

    @classmethod
    def from_scipy(cls, system: Any) -> "StateSpace":
        """From scipy.signal's StateSpace, TransferFunction or ZerosPolesGain (`lti`), in continuous time."""
        matrices, dt = interop.matrices_of_scipy("StateSpace.from_scipy", system)
        interop.continuous("StateSpace.from_scipy", dt, "DiscreteStateSpace.from_scipy")
        return cls(*matrices)

    def to_scipy(self) -> Any:
        """As a scipy.signal.StateSpace."""
        return interop.scipy_system("StateSpace.to_scipy", interop.same_form(self), None)

    @classmethod
    def from_control(cls, system: Any) -> "StateSpace":
        """From python-control's StateSpace or TransferFunction, in continuous time."""
        matrices, dt = interop.matrices_of_control("StateSpace.from_control", system)
        interop.continuous("StateSpace.from_control", dt, "DiscreteStateSpace.from_control")
        return cls(*matrices)

    def to_control(self) -> Any:
        """As a control.StateSpace."""
        return interop.control_system("StateSpace.to_control", interop.same_form(self), 0)

    def plot(self, path: str | Path | None = None, t: TensorLike | None = None) -> "Figure":
        """Draw impulse response, step response and poles; save the picture if a path is given. Needs matplotlib.

        t: the times, (l,); None is `times()`, which a stable system alone has.
        """
        from adder.theory.plot import plot_continuous

        return plot_continuous(self, self._given_times("plot", t), path)

    def __repr__(self) -> str:
        return f"StateSpace({printing.described(self)})"

    def __str__(self) -> str:
        return printing.equations(self, "dx{}/dt", "x{}", "x{}", "u{}")


class DiscreteStateSpace(LinearSystem):
    r"""A linear system in discrete time, with p inputs and q outputs. The output sees the input of its own step:

        h[t] = A h[t-1] + B x[t]        y[t] = C h[t] + D x[t]

    This is the convention of S4 and Mamba. scipy.signal and control theory name the state one step earlier; `to_scipy`
    and `from_scipy` go from one to the other, with the same inputs and outputs (`adder.theory.interop` says how).

    Args:
        A, B, C, D: as for `StateSpace`.
        dt: the length of a step, which only `transfer`'s users, scipy and control ask for.

    Every view gives the same numbers: `recurrence`, `convolution`, `kernel`, `transfer`.

    Raises:
        UsageError: a shape that does not fit, complex numbers, NaN, dt not above zero.

    Example:
        >>> mean = DiscreteStateSpace([[0.5]], [0.5], [1.0])
        >>> print(mean)
        h[t] = 0.5 h[t-1] + 0.5 x[t]
        y[t] = h[t]
        >>> y, state = mean.recurrence([1.0, 0.0, 0.0])
        >>> y.tolist(), mean.kernel(3).tolist(), state.tolist()
        ([0.5, 0.25, 0.125], [0.5, 0.25, 0.125], [0.125])
    """

    dt: float
    _border = 1.0

    def __init__(
        self,
        A: TensorLike,
        B: TensorLike,
        C: TensorLike,
        D: TensorLike | None = None,
        dt: float = 1.0,
    ):
        super().__init__(A, B, C, D)
        object.__setattr__(self, "dt", positive("DiscreteStateSpace", "dt", dt))

    def _slowness(self, values: Tensor) -> Tensor:
        return values.abs()

    def recurrence(
        self, u: TensorLike, state: TensorLike | None = None
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "*b n"]]:
        """Step by step: u (..., l, p) or (l,) to y (..., l, q) or (l,), and the last state (..., n).

        `state` is h[-1], None means zero. Pass the state that comes back to continue: any cut gives the same numbers.
        """
        return self._recurrence("DiscreteStateSpace.recurrence", u, state)

    def _recurrence(
        self, name: str, u: TensorLike, state: TensorLike | None, unit: str = "step"
    ) -> tuple[Tensor, Tensor]:
        x, flat = self._input(name, u)
        h = self._state(name, state, x.shape[:-2])
        y, last = views.recurrence(self.A, self.B, self.C, self.D, x, h)
        ends = self._ends(y.shape[-2]) * (self.dt if unit == "time" else 1)
        did_not_overflow(name, y.movedim(-2, 0), ends, unit=unit)
        did_not_overflow(name, last[None], ends[-1:], unit=unit)
        return self._output(y, flat), last

    def kernel(self, length: int) -> Float[Tensor, "..."]:
        """K[l] = C A^l B for l < length: (q, p, length), or (length,) where p = q = 1. y = K * x + D x."""
        length = whole("DiscreteStateSpace.kernel", "length", length)
        K = self._kernel("kernel", length)
        return K[0, 0] if self.inputs == self.outputs == 1 else K

    def convolution(self, u: TensorLike) -> Float[Tensor, "..."]:
        """The same map from a state of zero, as a convolution with the kernel by FFT."""
        x, flat = self._input("DiscreteStateSpace.convolution", u)
        K = self._kernel("convolution", x.shape[-2])
        return self._output(views.convolution(K, self.D, x), flat)

    def transfer(self, z: TensorLike) -> Complex[Tensor, "..."]:
        """H(z) = C (1 - A / z)^-1 B + D, which is sum_l K[l] z^-l + D: the shape of z, then (q, p) unless both are 1.

        A frequency of w radians per unit of time is z = e^(i w dt).
        """
        points, values = self._resolvent("transfer", z)
        return self._entry(points[..., None, None] * values + self.D)

    def spectrum(self, length: int) -> Complex[Tensor, "..."]:
        """The discrete Fourier transform (`rfft`) of `kernel(length)`, by the truncated generating function of S4.

        (length // 2 + 1,), then (q, p) unless both are 1. Refused where a pole is itself a root of unity.
        """
        name = "DiscreteStateSpace.spectrum"
        length = whole(name, "length", length)
        return self._entry(views.spectrum(self.A, self.B, self.C, length, name=name))

    def impulse(self, length: int | None = None) -> Float[Tensor, "..."]:
        """The output after an input of 1, 0, 0, ...: the kernel, with D in its first step; (length,), then (q, p)."""
        K = self._kernel("impulse", self._length("impulse", length)).permute(2, 0, 1)
        return self._entry(torch.cat([K[:1] + self.D, K[1:]]))

    def step(self, length: int | None = None) -> Float[Tensor, "..."]:
        """The output under an input of 1, 1, 1, ...: (length,), then (q, p) unless both are 1."""
        y = self._kernel("step", self._length("step", length)).permute(2, 0, 1).cumsum(0) + self.D
        name = "DiscreteStateSpace.step"
        return self._entry(did_not_overflow(name, y, self._ends(len(y)), unit="step"))

    def dc_gain(self) -> Float[Tensor, "..."]:
        """C (1 - A)^-1 B + D: what the output settles at under a constant input of 1. A stable system alone settles."""
        self._expect_stable("dc_gain", "it does not settle")
        identity = torch.eye(self.states, dtype=self.A.dtype, device=self.A.device)
        return self._entry(self.D + self.C @ torch.linalg.solve(identity - self.A, self.B))

    def _kernel(self, what: str, length: int) -> Tensor:
        K = views.kernel(self.A, self.B, self.C, length)
        name = f"DiscreteStateSpace.{what}"
        did_not_overflow(name, K.movedim(-1, 0), self._ends(length), unit="step")
        return K

    def _ends(self, length: int) -> Tensor:
        return torch.arange(1, length + 1, dtype=torch.float64, device=self.A.device)

    def _length(self, what: str, length: int | None) -> int:
        name = f"DiscreteStateSpace.{what}"
        if length is not None:
            return whole(name, "length", length)
        self._expect_stable(what, "its response has no end: give a length")
        slowest = float(self.poles.abs()[0])
        steps = self.states + (math.log(_SETTLED) / math.log(slowest) if slowest > 0 else 0)
        if steps > _LONGEST:
            raise UsageError(
                f"{name}: the response needs {steps:.2g} steps to settle: give a length"
            )
        return math.ceil(steps)

    @classmethod
    def from_scipy(cls, system: Any) -> "DiscreteStateSpace":
        """From scipy.signal's StateSpace, TransferFunction or ZerosPolesGain with a step (`dlti`).

        Same inputs, same outputs. The state becomes that after the step: n numbers, or n + p where A cannot be
        inverted without losing digits.
        """
        matrices, dt = interop.matrices_of_scipy("DiscreteStateSpace.from_scipy", system)
        step = interop.discrete_step("DiscreteStateSpace.from_scipy", dt, "StateSpace.from_scipy")
        return cls(*interop.state_after(*matrices), step)

    def to_scipy(self) -> Any:
        """As a scipy.signal.StateSpace with dt: same A and B, C A in the place of C and D + C B in that of D."""
        matrices = interop.state_before(*interop.same_form(self))
        return interop.scipy_system("DiscreteStateSpace.to_scipy", matrices, self.dt)

    @classmethod
    def from_control(cls, system: Any) -> "DiscreteStateSpace":
        """From python-control's StateSpace or TransferFunction with a step; the state as in `from_scipy`."""
        matrices, dt = interop.matrices_of_control("DiscreteStateSpace.from_control", system)
        step = interop.discrete_step(
            "DiscreteStateSpace.from_control", dt, "StateSpace.from_control"
        )
        return cls(*interop.state_after(*matrices), step)

    def to_control(self) -> Any:
        """As a control.StateSpace with dt, in the convention of `to_scipy`."""
        matrices = interop.state_before(*interop.same_form(self))
        return interop.control_system("DiscreteStateSpace.to_control", matrices, self.dt)

    def plot(self, path: str | Path | None = None, length: int | None = None) -> "Figure":
        """Draw impulse response, step response and poles; save the picture if a path is given. Needs matplotlib.

        length: how many steps; None is as many as a stable system needs to settle.
        """
        from adder.theory.plot import plot_discrete

        return plot_discrete(self, self._length("plot", length), path)

    def __repr__(self) -> str:
        return f"DiscreteStateSpace({printing.described(self)}, dt={self.dt:g})"

    def __str__(self) -> str:
        return printing.equations(self, "h{}[t]", "h{}[t]", "h{}[t-1]", "x{}[t]")
