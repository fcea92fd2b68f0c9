"""To and from scipy.signal and python-control: the same inputs give the same outputs."""

from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from systems import apart, normal, stable

from adder import DiscreteStateSpace, StateSpace, UsageError
from adder.theory.discretize import METHODS

SIZES = [(4, 1, 1), (5, 2, 3)]


@pytest.mark.parametrize("size", SIZES)
def test_continuous_there_and_back(size: tuple[int, int, int]) -> None:
    system = stable(*size)
    theirs = system.to_scipy()
    assert isinstance(theirs, scipy.signal.StateSpace)
    assert theirs.dt is None
    back = StateSpace.from_scipy(theirs)
    for letter in "ABCD":
        assert torch.equal(getattr(back, letter), getattr(system, letter))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", SIZES)
def test_discrete_outputs_are_dlsims(size: tuple[int, int, int], method: str) -> None:
    system = stable(*size).discretize(0.1, method)
    u = normal(40, system.inputs)
    theirs = system.to_scipy()
    assert theirs.dt == 0.1
    y, _ = system.recurrence(u)
    _, expected, _ = scipy.signal.dlsim(theirs, u.numpy())
    assert apart(y, expected) < 1e-13
    back = DiscreteStateSpace.from_scipy(theirs)
    assert back.dt == 0.1
    assert apart(back.recurrence(u)[0], y) < 1e-12
    if method in ("zoh", "bilinear"):
        assert back.states == system.states
        for letter in "ABCD":
            assert apart(getattr(back, letter), getattr(system, letter)) < 1e-11


def test_the_convention_in_numbers() -> None:
    """Theirs answers an impulse one step later: their C B is at step 1, ours at step 0."""
    ours = DiscreteStateSpace([[0.5]], [2.0], [3.0])
    theirs = ours.to_scipy()
    assert (theirs.A.item(), theirs.B.item(), theirs.C.item(), theirs.D.item()) == (0.5, 2, 1.5, 6)
    plain = scipy.signal.StateSpace([[0.5]], [[2.0]], [[3.0]], [[0.0]], dt=True)
    got = DiscreteStateSpace.from_scipy(plain)
    assert got.dt == 1
    assert got.impulse(4).tolist() == [0, 6, 3, 1.5]
    assert ours.impulse(4).tolist() == [6, 3, 1.5, 0.75]


DELAYS = {
    "a delay": ([[0.0]], [[1.0]], [[1.0]], [[0.0]]),
    "three delays in a row": (np.eye(3, k=-1), np.eye(3)[:, :1], np.eye(3)[2:], [[0.5]]),
    "a stiff one": (np.diag([1e-200, 0.5]), np.ones((2, 1)), np.ones((1, 2)), [[1.0]]),
    "close to singular": (np.diag([1e-9, 0.5]), np.ones((2, 1)), np.ones((1, 2)), [[1.0]]),
}


@pytest.mark.parametrize("name", DELAYS)
def test_a_matrix_that_cannot_be_inverted_costs_a_state_not_digits(name: str) -> None:
    theirs = scipy.signal.StateSpace(*DELAYS[name], dt=0.5)
    ours = DiscreteStateSpace.from_scipy(theirs)
    assert ours.states == theirs.A.shape[0] + 1
    u = normal(20)
    _, expected, _ = scipy.signal.dlsim(theirs, u.numpy())
    assert apart(ours.recurrence(u)[0], expected[:, 0]) < 1e-14
    _, again, _ = scipy.signal.dlsim(ours.to_scipy(), u.numpy())
    assert apart(torch.from_numpy(again), expected) < 1e-14


def test_transfer_functions_and_zeros_poles_gain() -> None:
    s = torch.tensor([0.3j, 1.0, 2 + 1j], dtype=torch.complex128)
    fraction = scipy.signal.TransferFunction([1, 3], [1, 2, 5])
    expected = (s + 3) / (s * s + 2 * s + 5)
    assert apart(StateSpace.from_scipy(fraction).transfer(s), expected) < 1e-14
    assert apart(StateSpace.from_scipy(fraction.to_zpk()).transfer(s), expected) < 1e-14
    sampled = scipy.signal.TransferFunction([1, 3], [1, 0.2, 0.5], dt=0.1)
    expected = (s + 3) / (s * s + 0.2 * s + 0.5)
    assert apart(DiscreteStateSpace.from_scipy(sampled).transfer(s), expected) < 1e-13
    gain = StateSpace.from_scipy(scipy.signal.TransferFunction([2.0], [1.0]))
    assert gain.simulate([1.0, 2.0], 0.1).tolist() == [2, 4]


@pytest.mark.parametrize("size", SIZES)
def test_control_there_and_back(size: tuple[int, int, int]) -> None:
    control = pytest.importorskip("control", reason="python-control is not installed")
    system = stable(*size)
    theirs = system.to_control()
    assert isinstance(theirs, control.StateSpace)
    assert theirs.isctime()
    back = StateSpace.from_control(theirs)
    for letter in "ABCD":
        assert torch.equal(getattr(back, letter), getattr(system, letter))
    discrete = system.discretize(0.1)
    u = normal(30, system.inputs)
    theirs = discrete.to_control()
    assert theirs.dt == 0.1
    response = control.forced_response(theirs, inputs=u.numpy().T, squeeze=False)
    y, _ = discrete.recurrence(u)
    assert apart(y, response.outputs.T) < 1e-12
    assert apart(DiscreteStateSpace.from_control(theirs).recurrence(u)[0], y) < 1e-12


def test_control_transfer_functions() -> None:
    control = pytest.importorskip("control", reason="python-control is not installed")
    s = torch.tensor([0.3j, 1.0], dtype=torch.complex128)
    got = StateSpace.from_control(control.tf([1, 3], [1, 2, 5]))
    assert apart(got.transfer(s), (s + 3) / (s * s + 2 * s + 5)) < 1e-14
    sampled = DiscreteStateSpace.from_control(control.tf([1.0], [1.0, 0.5], True))
    assert sampled.dt == 1
    assert sampled.impulse(4).tolist() == [0, 1, -0.5, 0.25]
    gain = StateSpace.from_control(control.tf([2.0], [1.0]))
    assert gain.simulate([1.0, 2.0], 0.1).tolist() == [2, 4]


CONTINUOUS = scipy.signal.StateSpace([[-1.0]], [[1.0]], [[1.0]], [[0.0]])
SAMPLED = scipy.signal.StateSpace([[0.5]], [[1.0]], [[1.0]], [[0.0]], dt=0.1)
REFUSED = [
    (
        lambda: StateSpace.from_scipy(SAMPLED),
        r"from_scipy: the system is in discrete time \(dt = 0.1\): use Disc",
    ),
    (
        lambda: DiscreteStateSpace.from_scipy(CONTINUOUS),
        "the system is in continuous time: use StateSpace",
    ),
    (lambda: StateSpace.from_scipy("x"), "StateSpace.from_scipy: got str, expected scipy.signal's"),
    (
        lambda: StateSpace.from_scipy(scipy.signal.TransferFunction([1, 0, 0], [1, 2])),
        "StateSpace.from_scipy: scipy.signal finds no state space form: Improper",
    ),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refuses(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=message):
        call()


def test_refuses_what_is_not_of_control() -> None:
    pytest.importorskip("control", reason="python-control is not installed")
    with pytest.raises(
        UsageError, match="from_control: got StateSpaceContinuous, expected control's"
    ):
        StateSpace.from_control(CONTINUOUS)


@pytest.mark.parametrize("method", ["to_control", "to_scipy", "plot"])
def test_a_missing_library_is_one_clear_line(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("adder.theory.interop.import_module", missing)
    with pytest.raises(
        UsageError, match=r"not installed: pip install '(control|scipy|adder-ssm\[plot\])'"
    ):
        getattr(stable(2, 1, 1), method)()
    with pytest.raises(UsageError, match="DiscreteStateSpace.* not installed"):
        getattr(stable(2, 1, 1).discretize(0.1), method)()
