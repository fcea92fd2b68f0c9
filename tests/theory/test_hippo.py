"""hippo and diagonal: the published formulas, entry by entry, and what they are said to be."""

import math

import pytest
import torch
from systems import apart, normal, run_examples
from torch import Tensor

import adder
from adder import UsageError, hippo
from adder.theory import diagonal
from adder.theory.exponential import matrix_expm1
from adder.theory.hippo import MEASURES, hippo_parts
from adder.theory.memory import basis, weight

RANK = {"legs": 1, "legt": 2, "lagt": 1, "fourier": 1, "fourier_decay": 1}


def published(measure: str, n: int) -> tuple[Tensor, Tensor]:
    """Entry by entry, as the papers write it, with dx/dt = A x + B u."""
    A, B = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        B[i] = 1 if measure == "lagt" else math.sqrt(2 * i + 1)
        for k in range(n):
            root = math.sqrt(2 * i + 1) * math.sqrt(2 * k + 1)
            A[i, k] = {
                "legs": -root if i > k else -(i + 1) if i == k else 0,
                "legt": -root * ((-1) ** (i - k) if i < k else 1),
                "lagt": -1 if i > k else -0.5 if i == k else 0,
            }[measure]
    return A, B


def how_to_train_your_hippo(n: int) -> tuple[Tensor, Tensor]:
    """FouT, with the constant first, then cosines at odd and sines at even places: n is odd."""
    A, B = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        B[i] = 2 if i == 0 else 2 * math.sqrt(2) * (i % 2)
        for k in range(n):
            if i == k == 0:
                A[i, k] = -2
            elif (i == 0 and k % 2) or (k == 0 and i % 2):
                A[i, k] = -2 * math.sqrt(2)
            elif i % 2 and k % 2:
                A[i, k] = -4
            elif i - k == 1 and k % 2:
                A[i, k] = 2 * math.pi * (k + 1) / 2
            elif k - i == 1 and i % 2:
                A[i, k] = -2 * math.pi * (i + 1) / 2
    return A, B


@pytest.mark.parametrize("n", [1, 2, 3, 64])
@pytest.mark.parametrize("measure", ["legs", "legt", "lagt"])
def test_is_as_published(measure: str, n: int) -> None:
    A, B = hippo(measure, n)
    assert A.dtype == B.dtype == torch.float64
    assert apart(A, published(measure, n)[0]) < 1e-15
    assert apart(B, published(measure, n)[1]) < 1e-15


def test_fourier_is_as_published() -> None:
    A, B = hippo("fourier", 9)
    assert apart(A, how_to_train_your_hippo(9)[0]) < 1e-15
    assert apart(B, how_to_train_your_hippo(9)[1]) < 1e-15
    assert torch.equal(hippo("fout", 9)[0], A)
    decay, b = hippo("fourier_decay", 9)
    assert apart(decay, A + torch.outer(B, B) / 4) < 1e-15
    assert apart(b, B / 2) < 1e-15


def test_an_even_fourier_has_one_state_that_does_nothing() -> None:
    A, B = hippo("fourier", 8)
    assert not torch.cat([A[1], A[:, 1], B[1:2]]).any()
    rest = [0, *range(2, 8)]
    assert torch.equal(A[rest][:, rest], hippo("fourier", 7)[0])


@pytest.mark.parametrize("n", [2, 5, 16, 64])
@pytest.mark.parametrize("measure", MEASURES)
def test_is_normal_plus_low_rank(measure: str, n: int) -> None:
    A, _, shift, P = hippo_parts("test", measure, n)
    normal_part = A + P.mT @ P
    skew = normal_part - shift * torch.eye(n)
    scale = A.abs().max()
    assert float((skew + skew.mT).abs().max() / scale) < 1e-15
    assert P.shape[0] == RANK[measure]
    symmetric = (A + A.mT) / 2 - shift * torch.eye(n)
    assert int(torch.linalg.matrix_rank(symmetric, rtol=1e-10)) == RANK[measure]


@pytest.mark.parametrize("measure", MEASURES)
def test_is_stable(measure: str) -> None:
    A, _ = hippo(measure, 11)
    assert float(torch.linalg.eigvalsh(A + A.mT).max()) < 1e-13  # |x| never grows
    assert float(torch.linalg.eigvals(A).real.max()) < -1e-3
    even = torch.linalg.eigvals(hippo(measure, 12)[0])  # fourier's idle state is an eigenvalue 0
    assert float(even.real.max()) < 1e-14
    assert bool((even == 0).any()) == measure.startswith("fourier")


@pytest.mark.parametrize(
    ("measure", "beta"), [("legs", None), ("lagt", None), ("lagt", 1.0), ("lagt", 0.4)]
)
def test_the_response_is_the_basis_under_its_weight(measure: str, beta: float | None) -> None:
    """e^(A s) B = phi_n(s) w(s): then x_n = integral of u(t - s) phi_n(s) w(s)."""
    A, B = hippo(measure, 6, window=2.0, beta=beta)
    s = torch.linspace(0, 7, 15, dtype=torch.float64)
    response = matrix_expm1(s[:, None, None] * A) @ B + B
    phi = basis(measure, 6, s, window=2.0, beta=beta)
    assert apart(response, phi * weight(measure, s, window=2.0, beta=beta)[:, None]) < 1e-12


@pytest.mark.parametrize("measure", ["legt", "fourier"])
def test_a_windowed_response_is_nearly_the_basis(measure: str) -> None:
    """Inside the window the mean square difference falls as n grows, and behind it what is left."""
    s = (torch.arange(50, dtype=torch.float64) + 0.5) / 25
    expected = basis(measure, 3, s.clamp(max=1)) * (s <= 1)[:, None]
    differences = []
    for n in (17, 65):
        A, B = hippo(measure, n)
        response = (matrix_expm1(s[:, None, None] * A) @ B + B)[:, :3]
        differences.append(float((response - expected).square().mean().sqrt()))
    assert differences[1] < 0.5 * differences[0]
    assert differences[1] < 0.06


def test_fourier_decay_hears_each_window_at_a_third() -> None:
    """What leaves the window comes in again, at a third: 2/3, 2/9, 2/27 in the state of the constant."""
    A, B = hippo("fourier_decay", 129)
    s = torch.arange(4.0).to(torch.float64)
    held = torch.stack([adder.discretize(A, B, end)[1][0] for end in s[1:]])
    shares = torch.diff(held, prepend=torch.zeros(1))
    assert apart(shares, 2 / 3.0 ** s[1:]) < 0.01


def test_the_window_is_the_unit_of_time() -> None:
    A, B = hippo("legt", 6, window=2.0)
    assert torch.equal(A, hippo("legt", 6)[0] / 2)
    assert torch.equal(B, hippo("legt", 6)[1] / 2)


def test_closed_forms_of_the_diagonals() -> None:
    n, k = 16, torch.arange(8, dtype=torch.float64)
    expected = {
        "lin": math.pi * k,
        "inv": n / math.pi * (n / (2 * k + 1) - 1),
        "inv2": n / math.pi * (n / (k + 1) - 1),
        "quad": (2 * k + 1) ** 2 / math.pi,
    }
    for init, imaginary in expected.items():
        Lambda, B = diagonal(init, n)
        assert torch.equal(Lambda.real, torch.full((8,), -0.5, dtype=torch.float64))
        assert apart(Lambda.imag, imaginary) < 1e-15
        assert torch.equal(B, torch.ones(8, dtype=torch.complex128))
    assert torch.equal(diagonal("real", n)[0], -(k + 1) + 0j)


def test_a_random_diagonal_follows_its_generator() -> None:
    def draw(seed: int) -> Tensor:
        return diagonal("rand", 8, generator=torch.Generator().manual_seed(seed))[0]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert bool((draw(1).imag > 0).all() and (draw(1).real == -0.5).all())


def test_diagonal_legs_is_the_normal_part() -> None:
    form = adder.nplr("legs", 32)
    Lambda, B = diagonal("legs", 32)
    assert apart(Lambda, form.Lambda) < 1e-15
    assert apart(B, form.B / 2) < 1e-14


def test_half_of_B_answers_as_legs_does() -> None:
    """Theorem 3 of S4D, for the response to a step: 2 Re V (e^(t Lambda) - 1) / Lambda B tends to that of HiPPO."""
    t = torch.linspace(0.1, 4, 20, dtype=torch.float64)
    A, B = hippo("legs", 4)
    expected = torch.stack([adder.discretize(A, B, now)[1] for now in t])
    errors = []
    for n in (8, 32, 128):
        Lambda, half = diagonal("legs", n)
        V = adder.nplr("legs", n).V[:4]
        response = 2 * (torch.expm1(t[:, None] * Lambda) / Lambda * half @ V.mT).real
        errors.append(apart(response, expected))
    assert errors[1] < errors[0] / 4
    assert errors[2] < errors[1] / 4
    assert errors[2] < 3e-3


def test_clipped_B_is_what_state_spaces_starts_from() -> None:
    Lambda, B = diagonal("legs", 16, B="clipped")
    form = adder.nplr("legs", 16)
    first = form.V[0] / form.V[0].abs()  # turned so that the first component is real
    whole = form.B * first
    assert apart(B.real, whole.real) < 1e-12
    assert apart(B.imag, whole.imag.clamp(-2, 2)) < 1e-12
    assert float(whole.imag.abs().max()) > 10
    assert torch.equal(Lambda, diagonal("legs", 16)[0])


def test_the_sign_of_the_frequencies_is_a_convention() -> None:
    Lambda, B = diagonal("inv", 8)
    C, t = torch.complex(normal(4), normal(4, seed=1)), torch.arange(5.0)[:, None]

    def kernel(Lambda: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return 2 * (torch.exp(Lambda * t) * B @ C).real

    other = kernel(Lambda.conj(), B.conj(), C.conj())
    assert torch.equal(kernel(Lambda, B, C), other)


REFUSED = [
    (lambda: hippo("legz", 4), "hippo: measure is 'legz', expected one of legs, legt, lagt"),
    (lambda: hippo(["legs"], 4), "hippo: measure is .*'legs'.*, expected one of"),
    (lambda: hippo("legs", 0), "hippo: n is 0, expected a whole number, 1 or more"),
    (lambda: hippo("legs", 2.5), "hippo: n is 2.5, expected a whole number"),
    (lambda: hippo("legt", 4, window=0), "hippo: window is 0, expected a number above 0"),
    (lambda: hippo("legt", 4, window=math.nan), "hippo: window is nan, expected"),
    (lambda: hippo("legs", 4, beta=1), "hippo: beta is 1, but only lagt has one, not legs"),
    (lambda: hippo("lagt", 4, beta=-1), "hippo: beta is -1, expected a number above -1"),
    (lambda: diagonal("fout", 4), "diagonal: init is 'fout', expected one of legs, lin, inv"),
    (lambda: diagonal("lin", 5), "diagonal: n is 5, expected an even number"),
    (
        lambda: diagonal("legs", 4, B="half"),
        "diagonal: B is 'half', expected one of theory, clipped",
    ),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refuses(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=message):
        call()


def test_examples_run() -> None:
    run_examples("adder.theory.hippo")
