"""StateSpace and DiscreteStateSpace: all views of a system are one map, and scipy's numbers are the same."""

import copy
import math
import pickle

import mpmath
import numpy as np
import pytest
import scipy.signal
import torch
from systems import apart, normal, run_examples, stable
from torch import Tensor
from torch.autograd import gradcheck

import adder
from adder import DiscreteStateSpace, StateSpace, UsageError
from adder.theory.discretize import METHODS

SIZES = [(1, 1, 1), (4, 1, 1), (5, 2, 3), (3, 3, 1), (7, 1, 2)]


def signal(system: StateSpace, length: int, *batch: int) -> Tensor:
    return normal(*batch, length, system.inputs, seed=9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", SIZES)
def test_recurrence_is_convolution(size: tuple[int, int, int], method: str) -> None:
    system = stable(*size).discretize(0.1, method)
    for length in (1, 2, 37, 100):
        u = signal(system, length, 2)
        y, _ = system.recurrence(u)
        assert apart(system.convolution(u), y) < 1e-13
        K = torch.atleast_3d(system.kernel(length)).reshape(system.outputs, system.inputs, length)
        by_hand = sum(
            torch.einsum("qp,bp->bq", K[..., lag], u[:, length - 1 - lag]) for lag in range(length)
        )
        assert apart(by_hand + u[:, -1] @ system.D.mT, y[:, -1]) < 1e-13


def test_convolution_of_white_noise_with_a_slow_kernel_does_not_wrap() -> None:
    A, B = adder.hippo("fourier", 9)
    system = StateSpace(A, B, normal(9)).discretize(1e-3)
    u = normal(257)
    expected = np.convolve(system.kernel(257).numpy(), u.numpy())[:257]
    assert apart(system.convolution(u), expected) < 1e-12


@pytest.mark.parametrize("length", [1, 2, 15, 16])
@pytest.mark.parametrize("size", SIZES)
def test_the_spectrum_is_that_of_the_kernel(size: tuple[int, int, int], length: int) -> None:
    system = stable(*size).discretize(0.05, "bilinear")
    K = system.kernel(length)
    spectrum = system.spectrum(length)
    axis = 0 if spectrum.ndim == 1 else None
    expected = torch.fft.rfft(K) if axis == 0 else torch.fft.rfft(K).permute(2, 0, 1)
    assert apart(spectrum, expected) < 1e-12


@pytest.mark.parametrize("size", SIZES)
def test_transfer_is_the_sum_of_the_kernel(size: tuple[int, int, int]) -> None:
    system = stable(*size).discretize(0.5)
    z = torch.polar(torch.full((5,), 1.1), torch.linspace(0, 3, 5)).to(torch.complex128)
    K = system.kernel(400).reshape(system.outputs, system.inputs, 400)
    powers = z[:, None] ** -torch.arange(400)
    expected = torch.einsum("qpl,fl->fqp", K.to(z.dtype), powers) + system.D
    assert apart(system.transfer(z).reshape(expected.shape), expected) < 1e-12
    assert apart(system.transfer(1.0), system.dc_gain().to(z.dtype)) < 1e-12
    assert apart(system.dc_gain(), system.step(400)[-1]) < 1e-12


def test_as_many_points_as_states_and_inputs() -> None:
    """torch.linalg.solve takes (3, 3) beside (3, 3, 3) for three vectors: it must be told."""
    system, s = stable(3, 3, 2), torch.tensor([0.5j, 1.0, 2j])
    many = system.transfer(s)
    assert apart(many, torch.stack([system.transfer(one) for one in s])) < 1e-14


@pytest.mark.parametrize("cuts", [(1, 99), (50, 50), (33, 1, 66)])
@pytest.mark.parametrize("method", ["zoh", "foh"])
def test_in_pieces(cuts: tuple[int, ...], method: str) -> None:
    system = stable(5, 2, 3).discretize(0.1, method)
    u = signal(system, 100, 2)
    expected, last = system.recurrence(u)
    parts, state = [], torch.zeros(2, system.states)
    for part in u.split(cuts, dim=1):
        y, state = system.recurrence(part, state)
        parts.append(y)
    assert apart(torch.cat(parts, dim=1), expected) < 1e-14
    assert apart(state, last) < 1e-14


def test_a_state_decays_by_itself() -> None:
    system = stable(4, 1, 1).discretize(0.1)
    start = normal(4)
    y, _ = system.recurrence(torch.zeros(5), start)
    expected = [system.C @ torch.linalg.matrix_power(system.A, t + 1) @ start for t in range(5)]
    assert apart(y, torch.cat(expected)) < 1e-14


@pytest.mark.parametrize("size", SIZES)
def test_simulate_is_lsim(size: tuple[int, int, int]) -> None:
    """scipy's time k is the start of our step k, and the end of our step k - 1."""
    system, dt, length = stable(*size), 0.1, 60
    u = signal(system, length)
    theirs = system.to_scipy()
    held = np.concatenate([u.numpy(), np.zeros((1, system.inputs))])
    _, y, x = scipy.signal.lsim(theirs, held, dt * np.arange(length + 1), interp=False)
    y, x = y.reshape(length + 1, -1), x.reshape(length + 1, -1)
    jump = (u - torch.from_numpy(held[1:])) @ system.D.mT  # D sees the input of the step that ends
    got, state = system.simulate(u, dt, torch.zeros(system.states))
    assert apart(got, torch.from_numpy(y[1:]) + jump) < 1e-12
    assert apart(state, x[-1]) < 1e-12
    lines = np.concatenate([np.zeros((1, system.inputs)), u.numpy()])
    _, y, _ = scipy.signal.lsim(theirs, lines, dt * np.arange(length + 1), interp=True)
    assert apart(system.simulate(u, dt, method="foh"), y.reshape(length + 1, -1)[1:]) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_discretize_is_cont2discrete(method: str) -> None:
    """One step of difference in the state: the glossary's C' = C A, D' = D + C B."""
    system, dt, length = stable(4, 2, 3), 0.2, 50
    u = signal(system, length)
    name = {"backward_euler": "backward_diff"}.get(method, method)
    theirs = scipy.signal.cont2discrete(
        [x.numpy() for x in (system.A, system.B, system.C, system.D)], dt, name
    )
    ours = system.discretize(dt, method)
    y, _ = ours.recurrence(u)
    _, expected, _ = scipy.signal.dlsim(theirs, u.numpy())
    if method == "backward_euler":  # the same four matrices, and the same outputs
        for got, other in zip(
            (ours.to_scipy().A, ours.to_scipy().D), (theirs[0], theirs[3]), strict=True
        ):
            assert apart(got, other) < 1e-13
        assert apart(y, expected) < 1e-13
    elif method == "foh":
        assert apart(y, expected) < 1e-13
    elif method == "bilinear":  # theirs feeds the mean of two samples
        mean = (u + torch.cat([torch.zeros(1, 2), u[:-1]])) / 2
        averaged, _ = DiscreteStateSpace(ours.A, ours.B, ours.C, dt=dt).recurrence(mean)
        assert apart(averaged + u @ system.D.mT, expected) < 1e-13
    else:  # y[t] is the output at the end of step t, theirs at its start
        skip = u @ system.D.mT
        assert apart((y - skip)[:-1], torch.from_numpy(expected)[1:] - skip[1:]) < 1e-13


def test_responses_are_scipys() -> None:
    system = stable(4, 1, 1)
    t = torch.linspace(0, 4, 50, dtype=torch.float64)
    _, impulse = scipy.signal.impulse(system.to_scipy(), T=t.numpy())
    _, step = scipy.signal.step(system.to_scipy(), T=t.numpy())
    assert apart(system.impulse(t), impulse) < 1e-12
    assert apart(system.step(t) - system.D[0, 0], step - step[0]) < 1e-12
    w, response = scipy.signal.freqresp(system.to_scipy(), [0.0, 0.5, 2.0])
    assert apart(system.transfer(1j * torch.from_numpy(w)), response) < 1e-12
    assert apart(system.dc_gain(), system.step(60.0)) < 1e-12


def test_responses_of_an_unstable_system_over_a_given_time() -> None:
    integrators = StateSpace([[0.0, 1], [0, 0]], [0.0, 1], [1.0, 0])
    t = torch.tensor([0.0, 1, 3])
    assert integrators.impulse(t).tolist() == [0, 1, 3]
    assert integrators.step(t).tolist() == [0, 0.5, 4.5]
    assert integrators.discretize(2.0).impulse(3).tolist() == [2, 6, 10]


def test_axes_of_systems_with_many_inputs_and_outputs() -> None:
    system = stable(5, 2, 3)
    discrete = system.discretize(0.1)
    assert (system.states, system.inputs, system.outputs) == (5, 2, 3)
    assert system.impulse(torch.zeros(4, 6)).shape == (4, 6, 3, 2)
    assert system.step().shape == (200, 3, 2)
    assert system.transfer(1j).shape == (3, 2)
    assert discrete.kernel(7).shape == (3, 2, 7)
    assert discrete.impulse(7).shape == discrete.step(7).shape == (7, 3, 2)
    assert discrete.spectrum(8).shape == (5, 3, 2)
    single = stable(5, 1, 1).discretize(0.1)
    assert single.convolution(torch.ones(6)).shape == single.kernel(6).shape == (6,)
    assert single.convolution(torch.ones(2, 6, 1)).shape == (2, 6, 1)
    assert stable(5, 1, 2).simulate(torch.ones(6), 0.1).shape == (6, 2)


def test_impulse_holds_D_and_kernel_does_not() -> None:
    system = DiscreteStateSpace([[0.5]], [1.0], [1.0], 10.0)
    assert system.kernel(3).tolist() == [1, 0.5, 0.25]
    assert system.impulse(3).tolist() == [11, 0.5, 0.25]
    assert system.step(3).tolist() == [11, 11.5, 11.75]


def test_poles_zeros_and_stability() -> None:
    system = StateSpace.from_scipy(
        scipy.signal.ZerosPolesGain([-3, 1], [-1, -2, -4 + 1j, -4 - 1j], 5)
    )
    poles = torch.tensor([-1, -2, -4 + 1j, -4 - 1j], dtype=torch.complex128)
    assert apart(system.poles, poles) < 1e-12
    assert apart(system.zeros, torch.tensor([1, -3], dtype=torch.complex128)) < 1e-12
    assert system.is_stable
    assert not StateSpace([[0.0]], [1.0], [1.0]).is_stable
    assert stable(6, 1, 1).zeros.shape == (6,)  # as many as poles, with a direct path
    assert StateSpace([[0.0, 1], [0, 0]], [0.0, 1], [1.0, 0]).zeros.shape == (0,)
    circle = DiscreteStateSpace([[0.0, 1], [-1, 0]], [1.0, 0], [1.0, 0])
    assert not circle.is_stable
    assert DiscreteStateSpace(0.999 * circle.A, [1.0, 0], [1.0, 0]).is_stable


@pytest.mark.parametrize("degree", [0, 1, 3, 5])
def test_zeros_are_the_roots_of_the_numerator(degree: int) -> None:
    roots = torch.linspace(-2, 1.5, degree).numpy()
    poles = [-1, -1.5, -2.2, -3, -3.7, -5]
    system = StateSpace.from_scipy(scipy.signal.ZerosPolesGain(roots, poles, 2))
    assert np.abs(np.sort(system.zeros.real.numpy()) - roots).max(initial=0) < 1e-10


def test_a_kernel_against_many_digits() -> None:
    A, B = adder.hippo("legs", 16)
    C = normal(16)
    K = StateSpace(A, B, C).discretize(0.01).kernel(64)
    with mpmath.workdps(50):
        E = mpmath.expm(mpmath.matrix((A * 0.01).tolist()))
        a = mpmath.matrix(A.tolist())
        h = mpmath.lu_solve(a, (E - mpmath.eye(16)) * mpmath.matrix(B.tolist()))
        expected = []
        for _ in range(64):
            expected.append(float((mpmath.matrix([C.tolist()]) * h)[0]))
            h = E * h
    assert apart(K, torch.tensor(expected, dtype=torch.float64)) < 1e-13


def test_gradients_through_views() -> None:
    A, B, C = (
        normal(3, 3).requires_grad_(),
        normal(3, 1, seed=1).requires_grad_(),
        normal(1, 3, seed=2),
    )
    u = normal(5, seed=3).requires_grad_()

    def outputs(A: Tensor, B: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        system = StateSpace(A, B, C).discretize(0.3)
        return system.recurrence(u)[0], system.convolution(u), system.kernel(4)

    assert gradcheck(outputs, (A, B, u))


def test_does_not_change_and_can_be_copied() -> None:
    A = torch.eye(2)
    system = StateSpace(A, [1.0, 0], [1.0, 0])
    A += 1
    assert torch.equal(system.A, torch.eye(2, dtype=torch.float64))
    with pytest.raises(AttributeError, match="StateSpace does not change: make a new one"):
        system.A = A
    for other in (copy.deepcopy(system), pickle.loads(pickle.dumps(system))):
        assert torch.equal(other.A, system.A)


def test_forms_of_the_matrices() -> None:
    with_number = StateSpace([[-1]], [1], [1], 2)
    assert with_number.D.tolist() == [[2]]
    assert with_number.A.dtype == torch.float64
    assert StateSpace(np.eye(2), np.ones((2, 3)), np.ones((4, 2)), 0).D.shape == (4, 3)
    assert StateSpace(torch.eye(2), torch.ones(2), torch.ones(2), [5.0]).D.item() == 5


one = torch.ones
SYSTEM = StateSpace([[0.0, 1], [-1, -1]], [0.0, 1], [1.0, 0])
UNSTABLE = StateSpace([[1.0]], [1.0], [1.0])
STEPS = SYSTEM.discretize(0.1)
REFUSED = [
    (
        lambda: StateSpace(one(2, 3), one(2), one(2)),
        r"StateSpace: A has shape \(2, 3\), expected \(n, n\)",
    ),
    (
        lambda: StateSpace(one(2, 2), one(3), one(2)),
        r"B has shape \(3,\), expected \(2,\) or \(2, inputs\)",
    ),
    (
        lambda: StateSpace(one(2, 2), one(2), one(2, 1)),
        r"C has shape \(2, 1\), expected .*\(outputs, 2\)",
    ),
    (
        lambda: StateSpace(one(2, 2), one(2), one(2), one(2)),
        r"D has shape \(2,\), expected \(1, 1\)",
    ),
    (lambda: StateSpace(one(2, 2), one(2, 2), one(2), 1), r"D has shape \(\), expected \(1, 2\)"),
    (lambda: StateSpace([[math.nan]], [1], [1]), "StateSpace: A has values that are NaN"),
    (lambda: StateSpace(one(2, 2) * 1j, one(2), one(2)), "StateSpace: A is complex"),
    (lambda: DiscreteStateSpace(one(1, 1), [1], [1], dt=0), "DiscreteStateSpace: dt is 0"),
    (
        lambda: SYSTEM.discretize(-0.1),
        "StateSpace.discretize: dt is -0.1, expected a number above 0",
    ),
    (lambda: SYSTEM.discretize(0.1, "tustin"), "StateSpace.discretize: method is 'tustin'"),
    (lambda: SYSTEM.simulate([], 0.1), r"simulate: u has shape \(0, 1\), which has no step"),
    (
        lambda: SYSTEM.simulate(one(3, 2), 0.1),
        r"simulate: u has shape \(3, 2\), expected \(l,\) or \(..., l, 1\)",
    ),
    (lambda: SYSTEM.simulate([math.nan], 0.1), "StateSpace.simulate: u has values that are NaN"),
    (lambda: SYSTEM.simulate(one(3), 0.1, one(3)), r"state has shape \(3,\), expected \(2,\)"),
    (
        lambda: SYSTEM.simulate(one(3), 0.1, one(2), "foh"),
        r"state has shape \(2,\), expected \(3,\)",
    ),
    (lambda: STEPS.recurrence(one(2, 3, 1), one(2)), r"recurrence: state .* \(2, 2\)"),
    (lambda: STEPS.kernel(0), "DiscreteStateSpace.kernel: length is 0, expected a whole number"),
    (lambda: STEPS.impulse(0), "DiscreteStateSpace.impulse: length is 0"),
    (
        lambda: UNSTABLE.impulse(),
        r"StateSpace.impulse: the system is not stable \(it has a pole at 1\)",
    ),
    (lambda: UNSTABLE.step(), "StateSpace.step: .* its response has no end: give the times"),
    (lambda: UNSTABLE.plot(), "StateSpace.plot: .* give the times"),
    (lambda: UNSTABLE.dc_gain(), "StateSpace.dc_gain: .* it does not settle"),
    (lambda: UNSTABLE.discretize(1.0).step(), "DiscreteStateSpace.step: .* give a length"),
    (lambda: UNSTABLE.discretize(1.0).dc_gain(), "DiscreteStateSpace.dc_gain: .* does not settle"),
    (lambda: UNSTABLE.discretize(1.0).plot(), "DiscreteStateSpace.plot: .* give a length"),
    (
        lambda: DiscreteStateSpace([[1 - 1e-9]], [1], [1]).impulse(),
        "needs 6.9e[+]09 steps to settle: give a length",
    ),
    (lambda: SYSTEM.impulse([-1.0]), "StateSpace.impulse: t is -1, expected 0 or more"),
    (lambda: SYSTEM.impulse([]), "StateSpace.impulse: t has no time in it"),
    (lambda: UNSTABLE.transfer(1.0), "transfer: the system has a pole at 1"),
    (lambda: stable(2, 2, 1).zeros, "zeros: the system has 2 inputs and 1 outputs"),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refuses(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=message):
        call()


def test_examples_run() -> None:
    run_examples("adder.theory.state_space")
