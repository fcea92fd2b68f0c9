"""What was silently wrong, or an error of PyTorch's: now a UsageError of one line, or right."""

import copy
import math
import re

import mpmath
import numpy as np
import pytest
import torch
from systems import apart, normal, stable
from torch import Tensor
from torch.autograd import gradcheck

import adder
from adder import DiscreteStateSpace, StateSpace, UsageError, discretize, hippo
from adder.theory import basis, diagonal, project, reconstruct, remember, weight
from adder.theory.checks import whole
from adder.theory.discretize import METHODS

one = torch.ones
SPRING = StateSpace([[0.0, 1], [-2, -3]], [0.0, 1], [1.0, 0])
STEPS = SPRING.discretize(0.1)
GROWING = StateSpace([[1.0]], [1.0], [1.0])


def test_a_diagonal_takes_a_B_that_broadcasts() -> None:
    A, B = -normal(3, 4).abs(), normal(4, seed=1)
    assert torch.equal(
        discretize(A, B, 0.1, diagonal=True)[1],
        discretize(A, B.expand(3, 4), 0.1, diagonal=True)[1],
    )
    assert discretize(A[0], one(1), one(3, 1))[1].shape == (3, 4)


@pytest.mark.parametrize("method", METHODS)
def test_the_step_passes_its_gradient(method: str) -> None:
    u, start = normal(6, SPRING.inputs), torch.zeros(3 if method == "foh" else 2)

    def outputs(dt: Tensor) -> tuple[Tensor, ...]:
        system = SPRING.discretize(dt, method)
        return system.A, system.B, SPRING.simulate(u, dt, method=method)

    dt = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(outputs, (dt,))
    assert SPRING.discretize(dt, method).dt == 0.3
    assert torch.equal(SPRING.simulate(u, dt, start, method)[0], SPRING.simulate(u, 0.3, start, method)[0])  # fmt: skip


def test_copies_of_systems_that_need_gradients() -> None:
    A = (-torch.eye(2)).requires_grad_()
    for system in (StateSpace(A, one(2), one(2)), DiscreteStateSpace(A, one(2), one(2))):
        for other in (copy.copy(system), copy.deepcopy(system), copy.deepcopy([system])[0]):
            assert other is system
            assert other.A.requires_grad


def test_whole_numbers() -> None:
    for value in (3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)):
        assert whole("f", "n", value) == 3
        assert torch.equal(hippo("legs", value)[0], hippo("legs", 3)[0])
        assert STEPS.kernel(value).shape == (3,)
    assert torch.equal(diagonal("inv", torch.tensor(4))[0], diagonal("inv", 4)[0])
    assert adder.nplr("legt", np.int64(4)).V.shape == (4, 2)
    for value in (torch.tensor(3.5), torch.tensor(3.0), 2.5, 3.0, True, np.True_, "3", None, -1, one(2)):  # fmt: skip
        line = "expected a whole number, 1 or more$"
        with pytest.raises(UsageError, match=rf"^hippo: n is .*, {line}"):
            hippo("legs", value)
        with pytest.raises(UsageError, match=rf"^DiscreteStateSpace.kernel: length is .*, {line}"):
            STEPS.kernel(value)
    with pytest.raises(UsageError, match=r"^f: n is tensor\(True\), expected"):
        whole("f", "n", torch.tensor(True))


def test_a_pole_is_refused_and_what_lies_near_it_is_not() -> None:
    """Up to a part in 10^13 of what s and A are made of, whatever the units of the states."""
    systems = [SPRING, STEPS, stable(20, 1, 1), stable(64, 2, 1), stable(20, 1, 1).discretize(0.1)]
    systems += [StateSpace(*hippo("legs", 64), normal(64)), StateSpace(*hippo("lagt", 8), normal(8))]  # fmt: skip
    for system in systems:
        for pole in system.poles:
            with pytest.raises(UsageError, match="transfer: the system has a pole at .*, one of"):
                system.transfer(pole)
    decay = StateSpace([[-1.0]], [1.0], [1.0])
    for off in (1e-6, 1e-9, 1e-11):
        near = -1 + off  # the distance that is left of off in float64 counts
        assert math.isclose(SPRING.transfer(near).real, 1 / (near + 1) / (near + 2), rel_tol=1e-3)
        assert decay.transfer(near).item() == 1 / (near + 1)


def test_units_do_not_make_a_pole() -> None:
    """A condition number would be 10^28 here, and the answers are right to the last digits."""
    stiff = StateSpace([[-1e14, 0], [0, -1e-14]], [1e14, 1e-14], [1.0, 1.0])
    assert apart(stiff.transfer(0.0).real, torch.tensor(2.0)) < 1e-15
    poles = -1e6 * torch.arange(1.0, 6, dtype=torch.float64)
    coefficients = np.poly(poles.numpy())  # from 1 to 10^32
    companion = np.diag(np.ones(4), 1)
    companion[-1] = -coefficients[:0:-1]
    system = StateSpace(companion, [0.0, 0, 0, 0, 1], [coefficients[-1], 0, 0, 0, 0])
    s = torch.tensor([0, 1e5j, -1.5e6], dtype=torch.complex128)
    expected = (-poles / (s[:, None] - poles)).prod(-1)
    assert apart(system.transfer(s), expected) < 1e-12


def test_among_the_eigenvalues_of_legs() -> None:
    """Lower triangular, so forward substitution: LU with pivoting gives 10^16 for 10^44 here."""
    A, B = hippo("legs", 64)
    C, s, h = normal(64), -32.5, []
    with mpmath.workdps(60):
        a, b = mpmath.matrix(A.tolist()), mpmath.matrix(B.tolist())
        for i in range(64):
            h.append((b[i] + sum(a[i, k] * h[k] for k in range(i))) / (s - a[i, i]))
        expected = float(sum(x * y for x, y in zip(C.tolist(), h, strict=True)))
    assert StateSpace(A, B, C).transfer(s).real.item() == pytest.approx(expected, rel=1e-12)


def test_gradients_of_the_transfer_function() -> None:
    def outputs(A: Tensor, s: Tensor) -> Tensor:
        return StateSpace(A, [0.0, 1], [1.0, 0]).transfer(s)

    s = torch.tensor([0.5 + 1j, 2j], dtype=torch.complex128, requires_grad=True)
    for A in (SPRING.A, torch.tensor([[-1.0, 0], [1, -2]], dtype=torch.float64)):
        assert gradcheck(outputs, (A.clone().requires_grad_(), s))
        assert gradcheck(lambda s, A=A: outputs(A, s), (s,))


def test_a_long_response_that_stays_finite_is_given() -> None:
    assert float(GROWING.impulse(700.0)) == pytest.approx(math.exp(700), rel=1e-12)
    assert GROWING.simulate(one(1400), 0.5)[-1] > 1e303
    assert bool(torch.isfinite(stable(8, 1, 1).impulse([0.0, 1e6])).all())


def test_the_window_of_a_basis_is_1_unless_something_is_said() -> None:
    s = [0.1, 0.9]
    for measure in ("legs", "legt", "lagt", "fourier"):
        assert torch.equal(basis(measure, 4, s), basis(measure, 4, s, window=1.0))
        assert torch.equal(weight(measure, s), weight(measure, s, window=1.0))


SPARSE, META = torch.eye(2).to_sparse(), torch.empty(2, 2, device="meta")
u = normal(5)
REFUSED = [
    (
        lambda: discretize(-one(3), one(3, 3), 0.1),
        "discretize: B has shape (3, 3), expected (3,): a diagonal A takes B of A's shape",
    ),
    (
        lambda: discretize(-one(2, 3), one(2, 2, 3), 0.1, diagonal=True),
        "discretize: B has shape (2, 2, 3), expected (2, 3)",
    ),
    (
        lambda: SPRING.discretize(one(2)),
        "StateSpace.discretize: dt is tensor([1., 1.]), expected a number above 0",
    ),
    (lambda: SPRING.discretize("0.1"), "StateSpace.discretize: dt is '0.1', expected a number"),
    (
        lambda: reconstruct(3.0, "legs", [0.1], window=1.0),
        "reconstruct: state has shape (), expected (..., n) with n >= 1",
    ),
    (
        lambda: reconstruct(u, "legs", [0.1], window=1.0, elapsed=2.0),
        "reconstruct: window is 1.0 and elapsed is 2.0, expected one of the two",
    ),
    (lambda: basis("legs", 4, [0.1], window=1, elapsed=2), "basis: window is 1 and elapsed is 2"),
    (lambda: weight("legs", [0.1], window=1, elapsed=2), "weight: window is 1 and elapsed is 2"),
    (lambda: basis("legs", 4, [0.1], window=0), "basis: window is 0, expected a number above 0"),
    (lambda: basis("legt", 4, [0.1], elapsed=1), "basis: legt needs a window"),
    (lambda: hippo("lagt", 4, beta="x"), "hippo: beta is 'x', expected a number above -1"),
    (lambda: hippo("lagt", 4, beta=math.nan), "hippo: beta is nan, expected a number above -1"),
    (lambda: project(u, "lagt", 4, window=1, beta="x"), "project: beta is 'x', expected a number"),
    (lambda: remember(u, "lagt", 4, window=1, beta="x"), "remember: beta is 'x', expected"),
    (lambda: reconstruct(u, "lagt", [0.1], window=1, beta="x"), "reconstruct: beta is 'x'"),
    (lambda: basis("lagt", 4, [0.1], beta="x"), "basis: beta is 'x', expected"),
    (lambda: weight("lagt", [0.1], beta="x"), "weight: beta is 'x', expected"),
    (lambda: project(u, "legs", 4, beta=1), "project: beta is 1, but only lagt has one, not legs"),
    (lambda: project(u, "legt", 4, window=1, beta=1), "project: beta is 1, but only lagt has one"),
    (lambda: remember(u, "legs", 4, beta=1), "remember: beta is 1, but only lagt has one"),
    (lambda: reconstruct(u, "legs", [0.1], window=1, beta=1), "reconstruct: beta is 1, but only"),
    (lambda: basis("fourier", 4, [0.1], beta=1), "basis: beta is 1, but only lagt has one"),
    (lambda: weight("legt", [0.1], beta=1), "weight: beta is 1, but only lagt has one, not legt"),
    (lambda: remember(u, "legt", 4), "remember: legt needs a window"),
    (lambda: remember([], "legs", 4), "remember: u has shape (0,), expected (l,) with l >= 1"),
    (lambda: remember(u, "legs", 2.5), "remember: n is 2.5, expected a whole number"),
    (
        lambda: StateSpace(SPARSE, one(2), one(2)),
        "StateSpace: A is a sparse tensor (torch.sparse_coo), expected a dense one",
    ),
    (lambda: discretize(SPARSE, one(2), 0.1), "discretize: A is a sparse tensor"),
    (
        lambda: StateSpace(META, one(2), one(2)),
        "StateSpace: A is on the meta device, which holds no numbers",
    ),
    (lambda: discretize(-one(2), META, 0.1), "discretize: B is on the meta device"),
    (
        lambda: DiscreteStateSpace([[-1.0]], [1.0], [1.0]).spectrum(4),
        "DiscreteStateSpace.spectrum: the system has a pole at -1, one of the points asked for",
    ),
    (lambda: STEPS.transfer(STEPS.poles), "DiscreteStateSpace.transfer: the system has a pole at"),
    (
        lambda: GROWING.impulse([1.0, 800.0, 900.0]),
        "StateSpace.impulse: the response grows past the largest float64 by time 800: "
        "give a shorter time",
    ),
    (lambda: GROWING.step([1.0, 800.0]), "StateSpace.step: the response grows past"),
    (
        lambda: GROWING.simulate(one(2000), 0.5),
        "StateSpace.simulate: the response grows past the largest float64 by time 710: ",
    ),
    (
        lambda: StateSpace(GROWING.A, [1.0], [0.0]).simulate([0.0] * 2000, 0.5, [1.0]),
        "StateSpace.simulate: the response grows past the largest float64 by time 710: ",
    ),
    (
        lambda: DiscreteStateSpace([[10.0]], [1.0], [1.0]).recurrence([1.0] * 400),
        "DiscreteStateSpace.recurrence: the response grows past the largest float64 by step 310: ",
    ),
    (
        lambda: DiscreteStateSpace([[10.0]], [1.0], [1.0]).kernel(400),
        "DiscreteStateSpace.kernel: the response grows past the largest float64 by step 310: ",
    ),
    (
        lambda: DiscreteStateSpace([[10.0]], [1.0], [1.0]).convolution([1.0] * 400),
        "DiscreteStateSpace.convolution: the response grows past",
    ),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refuses(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match="^" + re.escape(message)) as error:
        call()
    assert "\n" not in str(error.value)
