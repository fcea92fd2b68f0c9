"""What a HiPPO state means: orthonormal functions, projections that are integrals, a past that comes back."""

import math

import numpy as np
import pytest
import torch
from systems import apart, normal, run_examples
from torch import Tensor

from adder import UsageError
from adder.theory.memory import basis, project, reconstruct, remember, weight

CASES = {
    "legs, all of the past": ("legs", {"elapsed": 3.0}),
    "legs, fading": ("legs", {"window": 0.5}),
    "legt": ("legt", {"window": 2.0}),
    "lagt": ("lagt", {"window": 0.5}),
    "lagt, beta 1": ("lagt", {"window": 0.5, "beta": 1.0}),
    "fourier": ("fourier", {"window": 2.0}),
}


def quadrature(measure: str, options: dict[str, float], points: int = 300) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss's formula over all times that the measure knows."""
    node, share = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(points))
    node, share = (node + 1) / 2, share / 2
    unit = options.get("window", options.get("elapsed", 1.0))
    if measure == "lagt" or (measure == "legs" and "window" in options):
        end = 120.0  # e^-120 is nothing, also times the largest polynomial
        return node * end * unit, share * end * unit
    return node * unit, share * unit


@pytest.mark.parametrize("name", CASES)
def test_the_functions_are_orthonormal(name: str) -> None:
    measure, options = CASES[name]
    s, ds = quadrature(measure, options)
    n = 9
    phi = basis(measure, n, s, **options)
    gram = phi.mT * (weight(measure, s, **options) * ds) @ phi
    assert float((gram - torch.eye(n)).abs().max()) < 1e-10


@pytest.mark.parametrize("name", ["legs, all of the past", "legs, fading", "lagt", "lagt, beta 1"])
def test_the_state_is_the_integral(name: str) -> None:
    """u in steps: each step's share of the integral, by Gauss's formula on that step."""
    measure, options = CASES[name]
    u, n = normal(30), 8
    dt = 0.1
    node, share = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(20))
    expected = torch.zeros(n, dtype=torch.float64)
    for t, now in enumerate(u):
        s = dt * (len(u) - t - (node + 1) / 2)
        phi = basis(measure, n, s, **options)
        counted = weight(measure, s, **options) * share * dt / 2
        expected += now * counted @ phi
    kept = {key: value for key, value in options.items() if key != "elapsed"}
    assert apart(project(u, measure, n, dt=dt, **kept)[-1], expected) < 1e-13


def test_the_whole_past_is_scale_free() -> None:
    """HiPPO-LegS knows no time scale: the same samples, further apart, give the same state (HiPPO, section 3)."""
    u = normal(2, 50)
    assert torch.equal(project(u, "legs", 6, dt=1.0), project(u, "legs", 6, dt=0.01))


def smooth(t: Tensor) -> Tensor:
    return torch.sin(2 * t) + 0.5 * torch.cos(5.1 * t)


def window_errors(measure: str, sizes: tuple[int, ...], **options: float) -> list[float]:
    """Mean square errors over the last 2 units of time (all 4, for legs without a window)."""
    dt = 0.005
    t = (torch.arange(800, dtype=torch.float64) + 0.5) * dt
    result = []
    for n in sizes:
        memory = remember(smooth(t), measure, n, dt=dt, **options)
        known = memory.ago < options.get("window", 4.0)
        difference = (memory.remembered - memory.signal)[known]
        result.append(float(difference.square().mean().sqrt()))
    return result


def test_the_whole_past_comes_back() -> None:
    errors = window_errors("legs", (4, 8, 16, 32))
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.02
    assert errors[3] < 2e-4  # the rest is that u is held: dt^2 u'' / 8 and its kin


def test_legt_keeps_its_window() -> None:
    errors = window_errors("legt", (2, 4, 8), window=2.0)
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.02


def test_fourier_keeps_its_window() -> None:
    """Slowly, as 1 / sqrt(n): the two ends of the window do not meet."""
    errors = window_errors("fourier", (5, 17, 65), window=2.0)
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[1]
    assert errors[2] < 0.1
    # A signal that does fit the window comes back whole.
    t = (torch.arange(2000, dtype=torch.float64) + 0.5) / 500
    memory = remember(torch.sin(math.pi * t), "fourier", 9, dt=0.002, window=2.0)
    inside = memory.ago < 2
    assert float((memory.remembered - memory.signal)[inside].abs().max()) < 0.02


def test_lagt_with_beta_0_keeps_a_pulse() -> None:
    """Its weight is even, so it keeps what has a finite energy."""
    dt = 0.01
    t = (torch.arange(1000, dtype=torch.float64) + 0.5) * dt
    pulse = torch.exp(-(((t - 8.5) / 0.4) ** 2))
    errors = []
    for n in (8, 16, 32):
        memory = remember(pulse, "lagt", n, dt=dt, window=0.2)
        errors.append(float((memory.remembered - pulse).abs().max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.01


def test_lagt_with_beta_1_keeps_the_recent_past() -> None:
    dt = 0.01
    t = (torch.arange(1000, dtype=torch.float64) + 0.5) * dt
    errors = []
    for n in (4, 8, 16):
        memory = remember(smooth(t), "lagt", n, dt=dt, window=0.2, beta=1.0)
        difference = (memory.remembered - memory.signal).square()
        errors.append(float((difference * memory.weight * dt).sum().sqrt()))
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.02


def test_the_recent_past_is_sharp_and_the_old_past_is_not() -> None:
    """The figure of the lesson: fading legs, error by age."""
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) * 0.005
    memory = remember(smooth(t), "legs", 32, dt=0.005, window=1.0)
    error = (memory.remembered - memory.signal).square()
    by_age = [
        float(error[(memory.ago >= a) & (memory.ago < a + 2)].mean().sqrt()) for a in (0, 2, 4, 8)
    ]
    assert by_age == sorted(by_age)
    assert by_age[0] < 0.03
    assert by_age[3] > 0.3
    assert bool((memory.weight.diff() > 0).all())


def test_behind_the_window_nothing_is_known() -> None:
    memory = remember(normal(100), "legt", 4, window=30.0)
    assert torch.equal(memory.remembered.isnan(), memory.ago > 30)


def test_batches() -> None:
    u = normal(2, 3, 20)
    states = project(u, "legt", 5, window=10.0)
    assert states.shape == (2, 3, 20, 5)
    assert apart(states[1, 2], project(u[1, 2], "legt", 5, window=10.0)) < 1e-14
    assert reconstruct(states, "legt", [0.5, 1.5], window=10.0).shape == (2, 3, 20, 2)


REFUSED = [
    (
        lambda: project(normal(5), "fourier_decay", 4, window=1),
        "project: measure is 'fourier_decay'",
    ),
    (lambda: project(normal(5), "legt", 4), "project: legt needs a window"),
    (lambda: project(normal(0), "legs", 4), r"project: u has shape \(0,\), expected \(..., l\)"),
    (lambda: project([1, math.nan], "legs", 4), "project: u has values that are NaN"),
    (lambda: project(normal(5), "legs", 4, dt=0), "project: dt is 0"),
    (lambda: reconstruct(normal(4), "legs", [1.0]), "reconstruct: say how long legs looks back"),
    (
        lambda: reconstruct(normal(4), "legt", [2.0], window=1),
        "reconstruct: ago is 2 to 2, expected what legt knows, times from 0 to 1",
    ),
    (
        lambda: reconstruct(normal(4), "lagt", [-1.0], window=1),
        "what lagt knows, times from 0 or more",
    ),
    (lambda: remember(normal(2, 4), "legs", 4), r"remember: u has shape \(2, 4\)"),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refuses(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=message):
        call()


def test_examples_run() -> None:
    run_examples("adder.theory.memory")
