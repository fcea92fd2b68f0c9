"""diagonal_kernel against dense matrices and against many digits: what the kernel of a linear system is."""

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from implementations import Implementation
from inputs import normals
from torch import Tensor

from adder.ops import diagonal_kernel
from adder.ops.diagonal_kernel.reference import diagonal_kernel_reference

METHODS = ["zoh", "bilinear", "dss"]
DIGITS = 60


def kernel_of(implementation: Implementation) -> Callable[..., Tensor]:
    return implementation.of(diagonal_kernel, diagonal_kernel_reference)


def relative(got: Any, truth: Any) -> float:
    """The largest error over the largest value."""
    got, truth = np.asarray(got), np.asarray(truth)
    return float(np.abs(got - truth).max() / np.abs(truth).max())


# Dense systems


def dense(
    A: np.ndarray, B: np.ndarray, C: np.ndarray, dt: float, length: int, method: str
) -> np.ndarray:
    """C Abar^l Bbar of a real system (n, n), (n), (n), for `length` steps; dss scales C by (e^(l dt A) - 1)^-1."""
    n = len(A)
    one = np.eye(n)
    if method == "bilinear":
        Abar = np.linalg.solve(one - dt / 2 * A, one + dt / 2 * A)
        Bbar = np.linalg.solve(one - dt / 2 * A, dt * B)
    else:
        both = scipy.linalg.expm(dt * np.block([[A, B[:, None]], [np.zeros((1, n + 1))]]))
        Abar, Bbar = both[:n, :n], both[:n, n]
    if method == "dss":
        C = np.linalg.solve((scipy.linalg.expm(length * dt * A) - one).T, C)
    h, K = Bbar, []
    for _ in range(length):
        K.append(C @ h)
        h = Abar @ h
    return np.array(K)


@pytest.mark.parametrize("method", METHODS)
def test_half_of_each_pair_is_the_whole_dense_system(
    implementation: Implementation, method: str
) -> None:
    """The state h of a pair is x1 + i x2 of a real block [[re, -im], [im, re]]; any basis gives the same kernel."""
    decay, im, *weights = (each.double() for each in normals(5, *[(4,)] * 6))
    b1, b2, c1, c2 = weights
    re, im, dt, length = -decay.abs() - 0.05, 5 * im, 0.06, 40
    A = scipy.linalg.block_diag(
        *([[r, -i], [i, r]] for r, i in zip(re.tolist(), im.tolist(), strict=True))
    )
    B, C = (torch.stack(pair, 1).flatten().numpy() for pair in ((b1, b2), (c1, c2)))
    T = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    expected = dense(T @ A @ T.T, T @ B, T @ C, dt, length, method)
    K = kernel_of(implementation)(
        torch.complex(re, im)[None],
        torch.complex(b1, b2)[None],
        torch.complex(c1, -c2)[None, None] / 2,  # y = c1 x1 + c2 x2 = 2 Re (c1 - i c2)/2 h
        torch.tensor([dt], dtype=torch.float64),
        length,
        method=method,
    )
    assert relative(K[0, 0], expected) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_real_numbers_stand_for_themselves(implementation: Implementation, method: str) -> None:
    """An EMA: a real diagonal is itself, and is the complex kernel of half its weights."""
    a, B, C = (each.double() for each in normals(6, (1, 5), (1, 5), (1, 1, 5)))
    A, dt = -a.abs(), torch.tensor([0.2], dtype=torch.float64)
    kernel = kernel_of(implementation)
    K = kernel(A, B, C, dt, 30, method=method)
    expected = dense(np.diag(A[0]), B[0].numpy(), C[0, 0].numpy(), 0.2, 30, method)
    assert relative(K[0, 0], expected) < 1e-12
    pairs = kernel(A + 0j, B + 0j, C / 2 + 0j, dt, 30, method=method)
    torch.testing.assert_close(pairs, K, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("method", METHODS)
def test_the_sign_of_the_imaginary_part_is_a_convention(
    implementation: Implementation, method: str
) -> None:
    parts = normals(7, (2, 3), (2, 3), (1, 2, 3), (1, 2, 3))
    A, C = torch.complex(-parts[0].abs(), 4 * parts[1]), torch.complex(*parts[2:])
    kernel, B, dt = kernel_of(implementation), torch.ones_like(A), torch.full((2,), 0.1)
    K = kernel(A, B, C, dt, 50, method=method)
    conjugated = kernel(A.conj(), B, C.conj(), dt, 50, method=method)
    torch.testing.assert_close(conjugated, K, rtol=0, atol=1e-6 * K.abs().max().item())


# Many digits


def exact(A: Any, B: Any, C: Any, dt: Any, steps: list[int], method: str, length: int) -> list[Any]:
    """sum_j C_j Bbar_j z_j^l at some steps, by the definition, in mpmath numbers."""
    total = [mpmath.mpc(0) for _ in steps]
    for a, b, c, d in zip(A, B, C, dt, strict=True):
        x = d * a
        if method == "bilinear":
            z, first = (1 + x / 2) / (1 - x / 2), d / (1 - x / 2)
        elif method == "zoh":
            z, first = mpmath.exp(x), (mpmath.exp(x) - 1) / a if a != 0 else d
        else:
            z = mpmath.exp(x)
            first = (z - 1) / a / (z**length - 1)
        total = [sum_ + c * b * first * z**l for sum_, l in zip(total, steps, strict=True)]
    return total


def numbers(x: Tensor) -> list[Any]:
    """The exact values of a tensor's numbers."""
    return [mpmath.mpmathify(each) for each in x.flatten().tolist()]


@pytest.mark.parametrize("method", METHODS)
def test_float32_at_large_phases(implementation: Implementation, method: str) -> None:
    """n = 64, 4096 steps, phases to 4e4: where powers in complex64 err by more than 1e-4."""
    m, length = 32, 4096
    A = torch.complex(torch.full((1, m), -0.005), torch.pi * torch.arange(m)[None])
    C = torch.complex(*normals(0, (1, 1, m), (1, 1, m)))
    B, dt = A.clone(), torch.tensor([0.1])
    steps = [*range(0, length, 97), length - 2, length - 1]
    with mpmath.workdps(40):
        values = (*(numbers(each) for each in (A, B, C)), numbers(dt) * m)
        truth = [float(2 * each.real) for each in exact(*values, steps, method, length)]
    K = kernel_of(implementation)(A, B, C, dt, length, method=method)
    assert K.dtype == torch.float32
    assert relative(K[0, 0, steps], truth) < 5e-7
    if method == "zoh":
        naive = torch.exp((dt * A).unsqueeze(-1) * torch.arange(length))
        weights = C * (torch.exp(dt * A) - 1)
        naive = 2 * torch.einsum("chm,hml->chl", weights, naive).real
        assert relative(naive[0, 0, steps], truth) > 1e-4


@pytest.mark.parametrize(
    ("a", "dtype"),
    [
        *[(a, torch.float64) for a in (0.0, -1e-12, -1e-6, -1e-3, -0.3, -40.0, 0.4)],
        *[(a, torch.float32) for a in (0.0, -1e-4, -0.5)],
        *[(a, torch.complex128) for a in (0.0, -1e-12 + 1e-12j, -1e-4 + 1e-3j, -0.5 + 20j)],
    ],
)
@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_values_and_gradients_next_to_zero_and_far_from_it(
    implementation: Implementation, method: str, a: complex, dtype: torch.dtype
) -> None:
    """d/dA of (e^(dt A) - 1) / A loses every digit near 0 when it is written so."""
    check_one_mode(implementation, a, 1e-3 if dtype == torch.float32 else 0.07, dtype, method, 6)


@pytest.mark.parametrize("a", [-1e-9, 1e-9, -1e-3, 0.2, -3.0, 3.0, -1e-9j, -0.3 + 8j, 0.3 + 8j])
def test_dss_next_to_its_pole_and_on_both_sides(implementation: Implementation, a: complex) -> None:
    dtype = torch.complex128 if isinstance(a, complex) else torch.float64
    check_one_mode(implementation, a, 0.07, dtype, "dss", 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_bilinear_where_z_is_zero(implementation: Implementation, dtype: torch.dtype) -> None:
    """dt A = -2: no logarithm of z, no quotient by z."""
    check_one_mode(implementation, -8.0, 0.25, dtype, "bilinear", 70)


def check_one_mode(
    implementation: Implementation,
    a: complex,
    step: float,
    dtype: torch.dtype,
    method: str,
    length: int,
) -> None:
    """Hold K and the gradients of a weighted sum of it against 60 digits; derivatives by central differences there."""
    weights = torch.linspace(1, -0.5, length, dtype=torch.float64)
    A = torch.tensor([[a]], dtype=dtype, requires_grad=True)
    dt = torch.tensor([step], dtype=dtype.to_real(), requires_grad=True)
    B = torch.tensor([[0.75]], dtype=dtype)
    C = torch.tensor([[[1.5]]], dtype=dtype)
    if dtype.is_complex:
        B, C = B + 0.5j, C - 0.25j
    K = kernel_of(implementation)(A, B, C, dt, length, method=method)
    (K.double() * weights).sum().backward()
    assert A.grad is not None
    assert dt.grad is not None
    both = 2 if dtype.is_complex else 1
    with mpmath.workdps(DIGITS):
        b, c, (a_,), (d,) = *(numbers(each) for each in (B, C)), numbers(A), numbers(dt)
        steps, h = list(range(length)), mpmath.mpf(10) ** -20

        def values(a: Any, d: Any) -> list[Any]:
            return [both * x for x in exact([a], b, c, [d], steps, method, length)]

        def weighted(a: Any, d: Any) -> Any:
            return sum(w * x for w, x in zip(numbers(weights), values(a, d), strict=True))

        truth = [float(x.real) for x in values(a_, d)]
        by_A = complex((weighted(a_ + h, d) - weighted(a_ - h, d)) / (2 * h))
        by_dt = float(((weighted(a_, d + h) - weighted(a_, d - h)) / (2 * h)).real)
        size = float(sum(abs(w * x) for w, x in zip(numbers(weights), values(a_, d), strict=True)))
    single = dtype.to_real() == torch.float32
    assert relative(K.detach()[0, 0], truth) < (2e-7 if single else 1e-14)
    gradient = complex(A.grad.item()).conjugate()
    # Between the terms of the sum much may cancel: what is lost then is that share of double precision.
    assert abs(gradient - by_A) <= (1e-6 if single else 1e-11) * abs(by_A)
    assert abs(dt.grad.item() - by_dt) <= (1e-6 if single else 1e-11) * max(abs(by_dt), size / step)


def test_the_gradient_of_one_step_near_zero(implementation: Implementation) -> None:
    """Row of the traps: A = -1e-4, dt = 1e-3 in float32; the truth is dt^2 / 2, a quotient gives 1.92."""
    A = torch.tensor([[-1e-4]], requires_grad=True)
    one = torch.ones(1, 1)
    kernel_of(implementation)(A, one, one[None], torch.tensor([1e-3]), 1).sum().backward()
    assert A.grad is not None
    assert abs(A.grad.item() / 5e-7 - 1) < 1e-6


@pytest.mark.parametrize("a", [1.0, 1.0 + 3.0j])
def test_dss_where_modes_grow(implementation: Implementation, a: complex) -> None:
    """e^(dt A l) overflows; its share of the sum over l does not."""
    length, dtype = 16384, torch.complex64 if isinstance(a, complex) else torch.float32
    A = torch.tensor([[a]], dtype=dtype, requires_grad=True)
    one = torch.ones(1, 1, dtype=dtype)
    K = kernel_of(implementation)(A, one, one[None], torch.tensor([0.1]), length, method="dss")
    K.sum().backward()
    assert A.grad is not None
    assert A.grad.isfinite().all()
    steps = [0, length // 2, *range(length - 40, length)]
    with mpmath.workdps(40):
        values = exact(numbers(A), [1], [1], numbers(torch.tensor([0.1])), steps, "dss", length)
    truth = [float(each.real) * (2 if dtype.is_complex else 1) for each in values]
    assert relative(K.detach()[0, 0, steps], truth) < 5e-7


def test_a_longer_dss_kernel_is_another_kernel(implementation: Implementation) -> None:
    """Its sum over steps is C B / A, whatever the length: softmax adds up to 1."""
    A, one = torch.tensor([[-0.5]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for length in (1, 7, 300):
        K = kernel_of(implementation)(A, one, one[None], one[0], length, method="dss")
        assert abs(K.sum().item() + 2) < 1e-13
