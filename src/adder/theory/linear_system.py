"""What linear systems in continuous and in discrete time share: four matrices, checked."""

from abc import ABC, abstractmethod
from typing import Any, NoReturn, Self

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from adder.errors import UsageError
from adder.theory import printing, views
from adder.theory.checks import TensorLike, exact, shape
from adder.theory.zeros import transmission_zeros


class LinearSystem(ABC):
    """A (n, n), B (n, p), C (q, n) and D (q, p): what systems in continuous and discrete time share.

    B of shape (n,) is one input, C of shape (n,) one output; None or 0 for D is no direct path. The matrices
    are kept in float64, with their gradients, and never change.
    """

    A: Float[Tensor, "n n"]
    B: Float[Tensor, "n p"]
    C: Float[Tensor, "q n"]
    D: Float[Tensor, "q p"]

    def __init__(self, A: TensorLike, B: TensorLike, C: TensorLike, D: TensorLike | None = None):
        name = type(self).__name__
        a, b, c = exact(name, "A", A), exact(name, "B", B), exact(name, "C", C)
        if a.ndim != 2 or a.shape[0] != a.shape[1] or a.shape[0] == 0:
            raise UsageError(f"{name}: A has shape {shape(a)}, expected (n, n) with n >= 1")
        n = a.shape[0]
        if b.ndim not in (1, 2) or b.shape[0] != n or b.numel() == 0:
            raise UsageError(f"{name}: B has shape {shape(b)}, expected ({n},) or ({n}, inputs)")
        if c.ndim not in (1, 2) or c.shape[-1] != n or c.numel() == 0:
            raise UsageError(f"{name}: C has shape {shape(c)}, expected ({n},) or (outputs, {n})")
        b, c = b.reshape(n, -1), c.reshape(-1, n)
        p, q = b.shape[1], c.shape[0]
        d = a.new_zeros(q, p) if D is None else exact(name, "D", D)
        if d.ndim == 0 and (p == q == 1 or not bool(d)):
            d = d.expand(q, p)
        if d.ndim == 1 and p == q == 1 and d.numel() == 1:
            d = d.reshape(1, 1)
        if d.shape != (q, p):
            raise UsageError(f"{name}: D has shape {shape(d)}, expected ({q}, {p})")
        for letter, value in (("A", a), ("B", b), ("C", c), ("D", d)):
            object.__setattr__(self, letter, value.clone())

    def __setattr__(self, attribute: str, value: Any) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} does not change: make a new one")

    def __delattr__(self, attribute: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} does not change: make a new one")

    def __copy__(self) -> Self:
        return self  # nobody can change it

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @property
    def states(self) -> int:
        """n."""
        return self.A.shape[0]

    @property
    def inputs(self) -> int:
        """p."""
        return self.B.shape[1]

    @property
    def outputs(self) -> int:
        """q."""
        return self.C.shape[0]

    @property
    def poles(self) -> Complex[Tensor, " n"]:
        """The eigenvalues of A, from the one that decays slowest."""
        values = torch.linalg.eigvals(self.A)
        return values[torch.argsort(self._slowness(values), descending=True, stable=True)]

    @property
    def is_stable(self) -> bool:
        """Whether every state decays to zero by itself; an integrator, on the border, does not."""
        return bool((self._slowness(self.poles) < self._border).all())

    _border: float

    @abstractmethod
    def _slowness(self, values: Tensor) -> Tensor:
        """Of poles: below `_border` for those that decay, larger for those that decay more slowly."""

    def _expect_stable(self, what: str, remedy: str) -> None:
        if not self.is_stable:
            worst = printing.number(complex(self.poles[0]))
            raise UsageError(
                f"{type(self).__name__}.{what}: the system is not stable (it has a pole at {worst}), so {remedy}"
            )

    def _input(self, name: str, u: TensorLike) -> tuple[Tensor, bool]:
        """u as (..., l, p), and whether it came without the axis of inputs."""
        x = exact(name, "u", u)
        flat = x.ndim == 1 and self.inputs == 1
        if flat:
            x = x[:, None]
        if x.ndim < 2 or x.shape[-1] != self.inputs:
            alone = "(l,) or " if self.inputs == 1 else ""
            raise UsageError(
                f"{name}: u has shape {shape(x)}, expected {alone}(..., l, {self.inputs})"
            )
        if x.numel() == 0:
            raise UsageError(f"{name}: u has shape {shape(x)}, which has no step in it")
        return x.to(self.A.device), flat

    def _state(self, name: str, state: TensorLike | None, batch: torch.Size) -> Tensor:
        if state is None:
            return self.A.new_zeros(*batch, self.states)
        h = exact(name, "state", state).to(self.A.device)
        if h.shape != (*batch, self.states):
            raise UsageError(
                f"{name}: state has shape {shape(h)}, expected {(*batch, self.states)}"
            )
        return h

    def _output(self, y: Tensor, flat: bool) -> Tensor:
        return y[..., 0] if flat and self.outputs == 1 else y

    def _entry(self, x: Tensor) -> Tensor:
        """(..., q, p), and without these two axes where both are 1."""
        return x[..., 0, 0] if self.inputs == self.outputs == 1 else x

    def _resolvent(self, what: str, at: TensorLike) -> tuple[Tensor, Tensor]:
        name = f"{type(self).__name__}.{what}"
        s = exact(name, "the point", at, may_be_complex=True)
        s = s.to(torch.complex128)
        values = views.resolvent(self.A, self.B, self.C, s.reshape(-1), name=name)
        return s, values.reshape(*s.shape, self.outputs, self.inputs)

    @property
    def zeros(self) -> Complex[Tensor, " z"]:
        """The zeros of the transfer function, of a system with one input and one output."""
        if not self.inputs == self.outputs == 1:
            raise UsageError(
                f"{type(self).__name__}.zeros: the system has {self.inputs} inputs and {self.outputs} outputs, "
                "expected one of each"
            )
        return transmission_zeros(self.A, self.B[:, 0], self.C[0], self.D[0, 0])
