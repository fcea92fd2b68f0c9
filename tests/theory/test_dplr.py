"""nplr: the dense matrix rebuilt to the last digits; and its kernel by Cauchy sums against dense powers."""

import math

import pytest
import torch
from systems import apart, normal, run_examples
from torch import Tensor

import adder
from adder import UsageError, hippo, nplr
from adder.theory.dplr import (
    both_halves,
    diagonal_plus_low_rank,
    doubled,
    dplr_bilinear,
    dplr_generating_function,
    truncated,
    untruncated,
)
from adder.theory.hippo import MEASURES
from adder.theory.views import roots_of_unity


def complex_normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.complex(normal(*shape, seed=seed), normal(*shape, seed=seed + 1))


def by_powers(Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: float, length: int) -> Tensor:
    """K[l] = C Abar^l Bbar over both halves."""
    Abar, h = dplr_bilinear(Lambda, P, B, dt)
    values = []
    for _ in range(length):
        values.append(both_halves(C) @ h)
        h = Abar @ h
    K = torch.stack(values, dim=-1)
    assert float(K.imag.abs().max()) < 1e-12 * float(K.abs().max())
    return K.real


@pytest.mark.parametrize("n", [2, 4, 16, 64])
@pytest.mark.parametrize("measure", [*MEASURES, "fout"])
def test_rebuilds_the_dense_matrix(measure: str, n: int) -> None:
    form, (A, B) = nplr(measure, n), hippo(measure, n)
    got_A, got_B = form.rebuild()
    assert apart(got_A, A) < 1e-13
    assert apart(got_B, B) < 1e-13
    assert all(x.dtype == torch.complex128 for x in form)
    W = both_halves(form.V)
    assert float((W.mH @ W - torch.eye(n)).abs().max()) < 1e-12


def test_the_eigenvectors_of_legs_itself_are_of_no_use() -> None:
    A, _ = hippo("legs", 32)
    values, vectors = torch.linalg.eig(A)
    naive = (vectors * values @ torch.linalg.inv(vectors)).real
    assert apart(naive, A) > 1
    assert apart(nplr("legs", 32).rebuild()[0], A) < 1e-13


@pytest.mark.parametrize("measure", ["legs", "legt", "lagt", "fourier"])
def test_is_the_same_up_to_the_phase_of_eigenvectors(measure: str) -> None:
    """P conj(B) does not know the phases; V, P and B alone do."""
    form, n = nplr(measure, 16), 16
    A, B = hippo(measure, n)
    P = (form.P @ both_halves(form.V)[:, :8].mT).real * 2  # back in the coordinates of A
    values, vectors = torch.linalg.eigh(-1j * (A - A.mT) / 2)
    start = 9 if measure == "fourier" else 8  # its pair at frequency 0 has no phase alone
    V = vectors[:, start:]
    overlap = (V.mH @ P.mT.to(V)).mT * (V.mH @ B.to(V)).conj()
    assert apart(form.P[:, start - 8 :] * form.B[start - 8 :].conj(), overlap) < 1e-12
    assert float((form.Lambda.imag[start - 8 :] - values[start:]).abs().max()) < 1e-12


def test_B_is_real_and_positive_and_frequencies_ascend() -> None:
    for measure in MEASURES:
        form = nplr(measure, 16)
        assert float(form.B.real.min()) > 0
        assert float(form.B.imag.abs().max()) < 1e-13
        assert bool((form.Lambda.imag.diff() > 0).all())
        assert float(form.Lambda.imag[0]) >= 0
        assert float(form.Lambda.real.std()) == 0


@pytest.mark.parametrize("measure", MEASURES)
def test_ranks(measure: str) -> None:
    least = 2 if measure == "legt" else 1
    assert nplr(measure, 8).P.shape == (least, 4)
    padded = nplr(measure, 8, rank=3)
    assert padded.P.shape == (3, 4)
    assert not padded.P[least:].any()
    assert apart(padded.rebuild()[0], hippo(measure, 8)[0]) < 1e-14
    if least > 1:
        with pytest.raises(UsageError, match="nplr: rank is 1, but legt needs at least 2"):
            nplr(measure, 8, rank=1)
    with pytest.raises(UsageError, match="nplr: rank is 0, expected a whole number"):
        nplr(measure, 8, rank=0)


def test_P_tied_to_Q_stays_stable_and_apart_does_not() -> None:
    form = nplr("legs", 16)
    L = torch.diag(both_halves(form.Lambda))

    def worst(P: Tensor, Q: Tensor) -> float:
        A = L - both_halves(P).mT @ both_halves(Q).conj()
        return float(torch.linalg.eigvals(A).real.max())

    tied, apart_ = [], []
    for seed in range(200):
        P = form.P + complex_normal(1, 8, seed=3 * seed)
        Q = form.P + complex_normal(1, 8, seed=3 * seed + 700)
        tied.append(worst(P, P))
        apart_.append(worst(P, Q))
    assert max(tied) < 0
    assert max(apart_) > 0


@pytest.mark.parametrize("length", [1, 2, 15, 16, 64, 101])
@pytest.mark.parametrize(
    ("measure", "rank"), [("legs", 1), ("legt", 2), ("fourier", 1), ("lin", 3)]
)
def test_generating_function_is_the_powers(measure: str, rank: int, length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    if measure == "lin":
        Lambda, P, B = diagonal_plus_low_rank("lin", 16, rank, generator=generator)
    else:
        Lambda, P, B = nplr(measure, 16, rank)[:3]
    C = complex_normal(2, 8)
    expected = by_powers(Lambda, P, B, C, 0.03, length)
    spectrum = dplr_generating_function(Lambda, P, B, C, 0.03, length)
    assert apart(torch.fft.irfft(spectrum, n=length), expected) < 1e-13


@pytest.mark.parametrize("measure", ["legs", "legt", "fourier"])
def test_nyquist_in_closed_form(measure: str) -> None:
    """At w = -1: dt Re(sum C~ B) over the halves, against the alternating sum of the powers."""
    Lambda, P, B = nplr(measure, 64)[:3]
    C, dt, length = complex_normal(32), 0.01, 16
    K = by_powers(Lambda, P, B, C, dt, length)
    alternating = (K * (-1.0) ** torch.arange(length)).sum()
    Ct = truncated(both_halves(C), dplr_bilinear(Lambda, P, B, dt)[0], length)[:32]
    closed = dt * (Ct * B).real.sum()
    scale = K.abs().sum()
    assert abs(float((closed - alternating) / scale)) < 1e-13
    spectrum = dplr_generating_function(Lambda, P, B, C, dt, length)
    assert bool(torch.isfinite(spectrum.real).all())
    assert abs(complex((spectrum[-1] - closed) / scale)) < 1e-15


def test_nodes_are_exact_where_they_can_be() -> None:
    assert roots_of_unity(8).tolist()[::2] == [1, -1j, -1]
    k = torch.arange(2049, dtype=torch.float64)
    w = roots_of_unity(4096)
    assert w.dtype == torch.complex128
    exact = torch.complex(torch.cos(math.pi * k / 2048), -torch.sin(math.pi * k / 2048))
    assert float((w - exact).abs().max()) < 3e-16


def test_halves_are_the_real_dense_system() -> None:
    """y = 2 Re(C h): twice what half of the states gives."""
    form = nplr("legs", 12)
    A, B = hippo("legs", 12)
    c = normal(12)
    dense = adder.StateSpace(A, B, c).discretize(0.05, "bilinear").kernel(20)
    halves = by_powers(*form[:3], c.to(torch.complex128) @ form.V, 0.05, 20)
    assert apart(halves, dense) < 1e-13


def test_C_in_the_place_of_its_truncation_is_wrong() -> None:
    """At 16 steps of 0.003 little has decayed, and the infinite kernel folded onto 16 taps is another one."""
    Lambda, P, B = nplr("legs", 16)[:3]
    C, dt, length = complex_normal(8), 0.003, 16
    expected = by_powers(Lambda, P, B, C, dt, length)
    folded = by_powers(Lambda, P, B, C, dt, 400 * length).unflatten(-1, (400, length)).sum(0)
    assert apart(folded, expected) > 0.3
    got = torch.fft.irfft(dplr_generating_function(Lambda, P, B, C, dt, length), n=length)
    assert apart(got, expected) < 1e-13


def test_C_comes_back_from_its_truncation() -> None:
    """fout, L = 16, with Re Lambda = -1e-4 as layers store it: 1 - Abar^L is near singular, condition 1e6."""
    Lambda, P, B = nplr("fout", 64)[:3]
    Abar, _ = dplr_bilinear(Lambda - 1e-4, P, B, 1e-3)
    C = both_halves(complex_normal(32))
    got = untruncated(truncated(C, Abar, 16), Abar, 16)
    assert apart(got, C) < 1e-9


@pytest.mark.parametrize("measure", ["legs", "legt", "fourier"])
def test_a_kernel_can_be_doubled(measure: str) -> None:
    Lambda, P, B = nplr(measure, 16)[:3]
    Abar, _ = dplr_bilinear(Lambda, P, B, 0.01)
    C = both_halves(complex_normal(3, 8))
    Ct = truncated(C, Abar, 20)
    for length in (20, 40):
        Ct = doubled(Ct, Abar, length)
    assert apart(Ct, truncated(C, Abar, 80)) < 1e-13


REFUSED = [
    (lambda: nplr("legs", 5), "nplr: n is 5, expected an even number"),
    (lambda: nplr("leg", 4), "nplr: measure is 'leg', expected one of"),
    (
        lambda: dplr_generating_function(*nplr("legs", 4)[:3], torch.ones(3), 0.1, 8),
        r"dplr_generating_function: Lambda, P, B and C have shapes \(2,\), \(1, 2\), \(2,\) and \(3,\)",
    ),
    (
        lambda: dplr_generating_function(*nplr("legs", 4)[:3], torch.ones(2), 0.1, 0),
        "dplr_generating_function: length is 0",
    ),
    (
        lambda: dplr_generating_function(*nplr("legs", 4)[:3], torch.ones(2), -0.1, 8),
        "dplr_generating_function: dt is -0.1",
    ),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refuses(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=message):
        call()


def test_dplr_starts_from_diagonals() -> None:
    for init in ("lin", "inv", "inv2", "quad", "real", "rand", "legs"):
        Lambda, P, B = diagonal_plus_low_rank(init, 8, 2)
        assert Lambda.shape == B.shape == (4,)
        assert P.shape == (2, 4)
    assert torch.equal(P, nplr("legs", 8, 2).P)


def test_examples_run() -> None:
    run_examples("adder.theory.dplr")
