"""discretize: against scipy and many digits, order by order, and where A cannot be inverted."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.signal import cont2discrete
from systems import apart, normal, run_examples
from torch import Tensor
from torch.autograd import gradcheck

import adder
from adder import UsageError, discretize
from adder.theory.discretize import METHODS, first_order_hold

SCIPY = {"backward_euler": "backward_diff"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("inputs", [None, 1, 3])
def test_dense_is_scipys(method: str, inputs: int | None) -> None:
    A, B = normal(5, 5), normal(5, inputs or 1, seed=1)
    system = (A.numpy(), B.numpy(), np.eye(5), np.zeros((5, B.shape[1])))
    Abar, Bbar, *_ = cont2discrete(system, 0.3, SCIPY.get(method, method))
    got = discretize(A, B if inputs else B[:, 0], 0.3, method)
    assert apart(got[0], Abar) < 1e-14
    assert apart(got[1], Bbar if inputs else Bbar[:, 0]) < 1e-14


@pytest.mark.parametrize("method", METHODS)
def test_diagonal_is_dense(method: str) -> None:
    A = torch.complex(-normal(4).abs(), 5 * normal(4, seed=1))
    B = torch.complex(normal(4, seed=2), normal(4, seed=3))
    Abar, Bbar = discretize(torch.diag(A), B, 0.2, method)
    a, b = discretize(A, B, 0.2, method)
    assert apart(torch.diag(a), Abar) < 1e-14
    assert apart(b, Bbar) < 1e-14


SINGULAR = {
    "zero": torch.zeros(2, 2),
    "integrators in a row": torch.diag(torch.ones(3), 1),
    "an integrator beside a decay": torch.tensor([[0.0, 0], [1, -2]]),
    "decaying Jordan block": -torch.eye(3) + torch.diag(torch.ones(2), 1),
    "stiff": torch.diag(torch.tensor([-1e6, -1, 0.0])),
}


@pytest.mark.parametrize("method", ["zoh", "foh"])
@pytest.mark.parametrize("name", SINGULAR)
def test_holds_of_a_singular_matrix_are_exact(name: str, method: str) -> None:
    A, dt = SINGULAR[name].to(torch.float64), 0.25
    n = len(A)
    B = torch.arange(1.0, n + 1, dtype=torch.float64)
    with mpmath.workdps(50):
        # phi_1(A dt) by its series: it converges for every matrix.
        z = mpmath.matrix((A * dt).tolist())
        if name == "stiff":
            phi = mpmath.diag([(mpmath.exp(x) - 1) / x if x else 1 for x in np.diag(z.tolist())])
        else:
            term = phi = mpmath.eye(n)
            for k in range(2, 60):
                term = term * z / k
                phi = phi + term
        hold = dt * (phi * phi if method == "foh" else phi) * mpmath.matrix(B.tolist())
        expected = torch.tensor([float(x) for x in hold], dtype=torch.float64)
    Bbar = discretize(A, B, dt, method)[1]
    assert float((Bbar / expected - 1).abs().max()) < 3e-15


@pytest.mark.parametrize("method", METHODS)
def test_a_diagonal_near_zero(method: str) -> None:
    A = torch.tensor([0.0, -1e-300, -1e-12, 1e-12j, -1e-6, -1e-2, -1e3], dtype=torch.complex128)
    Abar, Bbar = discretize(A, torch.ones(7), 0.5, method)
    with mpmath.workdps(60):
        for a, got in zip(A.tolist(), Bbar.tolist(), strict=True):
            z = mpmath.mpmathify(a) / 2
            phi = mpmath.expm1(z) / z if z else mpmath.mpf(1)
            gain = {"zoh": phi, "foh": phi * phi, "euler": 1, "bilinear": 1 / (1 - z / 2)}
            expected = complex(gain.get(method, 1 / (1 - z)) / 2)
            assert abs(got / expected - 1) < 1e-15
    assert Abar[0] == 1


def test_a_step_for_each_channel() -> None:
    A, B = -normal(3, 4).abs(), normal(3, 4, seed=1)
    dt = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    Abar, Bbar = discretize(A, B, dt, diagonal=True)
    for h in range(3):
        a, b = discretize(A[h], B[h], dt[h])
        assert torch.equal(Abar[h], a)
        assert torch.equal(Bbar[h], b)
    shared = discretize(A[0], B[0], dt[:, None], "bilinear")
    assert shared[0].shape == shared[1].shape == (3, 4)
    each = discretize(A, B, dt[:, None].expand(3, 4).clone(), diagonal=True)
    assert torch.equal(each[0], Abar)


@pytest.mark.parametrize(
    ("method", "order"), [("euler", 1), ("backward_euler", 1), ("bilinear", 2)]
)
def test_order_of_convergence(method: str, order: int) -> None:
    """A held input, each hold cut into more and more steps: the error falls as the method's order says."""
    A = torch.tensor([[-0.5, 3.0], [-2.0, -1.0]], dtype=torch.float64)
    B, u = torch.tensor([1.0, 2.0], dtype=torch.float64), normal(4)
    expected = run(A, B, u, 0.5, "zoh", 1)
    cuts = torch.tensor([64, 128, 256, 512])
    errors = torch.tensor([apart(run(A, B, u, 0.5, method, int(cut)), expected) for cut in cuts])
    slopes = -errors.log2().diff()
    assert float((slopes - order).abs().max()) < 0.1


def run(A: Tensor, B: Tensor, u: Tensor, dt: float, method: str, cut: int) -> Tensor:
    Abar, Bbar = discretize(A, B, dt / cut, method)
    h, states = torch.zeros_like(B), []
    for now in u:
        for _ in range(cut):
            h = Abar @ h + Bbar * now
        states.append(h)
    return torch.stack(states)


def test_zoh_is_exact_for_inputs_in_steps() -> None:
    A, B, u = normal(3, 3), normal(3, seed=1), normal(5, seed=2)
    assert apart(run(A, B, u, 0.5, "zoh", 7), run(A, B, u, 0.5, "zoh", 1)) < 1e-14


def test_foh_is_exact_for_inputs_in_straight_lines() -> None:
    A, B, dt, cut = normal(3, 3), normal(3, 1, seed=1), 0.5, 8
    u = torch.cat([torch.zeros(1), normal(6, seed=2)])
    fine = torch.cat([a + (b - a) * torch.arange(cut) / cut for a, b in u.unfold(0, 2, 1)])
    fine = torch.cat([fine, u[-1:]])

    def states(samples: Tensor, step: float) -> Tensor:
        Abar, falling, rising = first_order_hold(A, B, torch.tensor(step, dtype=torch.float64))
        h, result = torch.zeros(3, 1, dtype=torch.float64), []
        for before, now in samples.unfold(0, 2, 1):
            h = Abar @ h + falling * before + rising * now
            result.append(h)
        return torch.stack(result)

    assert apart(states(fine, dt / cut)[cut - 1 :: cut], states(u, dt)) < 1e-13
    # The two-term recurrence is one step ahead, without the triangle that has only risen.
    (Abar, Bbar), (_, _, rising) = (
        discretize(A, B, dt, "foh"),
        first_order_hold(A, B, torch.tensor(dt)),
    )
    ahead, seen = torch.zeros(3, 1, dtype=torch.float64), []
    for now in u[1:]:
        seen.append(ahead + rising * now)
        ahead = Abar @ ahead + Bbar * now
    assert apart(torch.stack(seen), states(u, dt)) < 1e-13
    # And its Bbar is all that one triangle leaves in the state.
    triangle = torch.tensor([0.0, 1, 0], dtype=torch.float64)
    left = states(triangle, dt)[-1, :, 0]
    assert apart(discretize(A, B[:, 0], dt, "foh")[1], left) < 1e-14


def test_trapezoid_where_the_transition_vanishes() -> None:
    """dt A = -2: the bilinear Abar is 0, and powers of it through a logarithm would be NaN."""
    Abar, Bbar = discretize(torch.tensor([-20.0]), torch.tensor([1.0]), 0.1, "bilinear")
    assert Abar.item() == 0
    assert Bbar.item() == 0.05
    K = adder.DiscreteStateSpace(Abar[:, None], Bbar, [1.0]).kernel(4)
    assert K.tolist() == [0.05, 0, 0, 0]


@pytest.mark.parametrize("method", METHODS)
def test_gradients(method: str) -> None:
    dense = [normal(3, 3), normal(3, 2, seed=1), torch.tensor(0.3, dtype=torch.float64)]
    near_zero = [torch.tensor([-1e-9, -0.5]).to(torch.complex128), normal(2).to(torch.complex128)]
    near_zero.append(torch.tensor(0.3, dtype=torch.float64))
    for inputs in (dense, near_zero):
        inputs = [x.requires_grad_() for x in inputs]
        assert gradcheck(lambda A, B, dt: discretize(A, B, dt, method), inputs)


def test_gradient_at_zero() -> None:
    """d Bbar / dA = dt^2 / 2 at A = 0; the quotient (e^z - 1) / z makes 8e7 of it near there."""
    A = torch.tensor([0.0, -1e-12], dtype=torch.float64, requires_grad=True)
    discretize(A, torch.ones(2), 1e-3)[1].sum().backward()
    assert apart(A.grad, torch.full((2,), 0.5e-6)) < 1e-6


ones = torch.ones
REFUSED = [
    ((ones(3, 3), ones(2), 0.1), {}, r"B has shape \(2,\), expected \(3,\) or \(3, inputs\)"),
    ((ones(3, 4), ones(3), 0.1), {}, r"A has shape \(3, 4\), expected \(n, n\)"),
    ((ones(3, 3), ones(3), 0.0), {}, "dt is 0, expected more than 0"),
    ((ones(3, 3), ones(3), -1), {}, "dt is -1, expected more than 0"),
    ((ones(3, 3), ones(3), math.nan), {}, "dt has values that are NaN"),
    ((ones(3, 3), ones(3), ones(2)), {}, r"dt has shape \(2,\), expected one number"),
    ((ones(3, 3), ones(3), 0.1, "tustin"), {}, "method is 'tustin', expected one of zoh, bilinear"),
    ((ones(3, 3) * math.inf, ones(3), 0.1), {}, "A has values that are NaN or infinite"),
    ((ones(3, 3), [1, math.nan, 1], 0.1), {}, "B has values that are NaN"),
    (("A", ones(3), 0.1), {}, "A is str, expected a tensor"),
    ((ones(0), ones(0), 0.1), {}, r"A has shape \(0,\)"),
    ((ones(3), ones(4), 0.1), {}, r"diagonal A has shape \(3,\), B \(4,\)"),
    ((ones(2, 3), ones(2, 3), ones(4)), {"diagonal": True}, "do not broadcast"),
    ((ones(1, 1), ones(1), 2.0, "bilinear"), {}, "overflows at this dt"),
    ((ones(1), ones(1), 1.0, "backward_euler"), {}, "overflows at this dt"),
    ((1e4 * ones(1, 1), ones(1), 1.0), {}, "overflows at this dt"),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("args", "options", "message"), REFUSED)
def test_refuses(args: tuple, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=f"discretize: .*{message}"):
        discretize(*args, **options)


def test_examples_run() -> None:
    run_examples("adder.theory.discretize")
