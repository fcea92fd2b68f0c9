"""phi_1, phi_2 and the derivative of phi_1 against 60 digits, near zero, across the change of formula, and far away."""

from collections.abc import Callable

import mpmath
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from adder.phi import phi1, phi1_derivative, phi2

PLACES = [0, 1e-100, 1e-12, -1e-4, 1e-6 + 1e-7j, 0.01j, 0.3 - 0.2j, 0.4999, -0.5001, 0.5j, 1 + 1j]
PLACES += [-5, -30, -800, 20j, -1e-4 + 300j]


def exact(name: str, z: complex) -> complex:
    with mpmath.workdps(400):
        x = mpmath.mpc(z)
        if x == 0:
            return {"phi1": 1, "phi2": 0.5, "phi1_derivative": 0.5}[name]
        one = (mpmath.exp(x) - 1) / x
        found = {"phi1": one, "phi2": (one - 1) / x, "phi1_derivative": (mpmath.exp(x) - one) / x}
        return complex(found[name])


@pytest.mark.parametrize("function", [phi1, phi2, phi1_derivative])
def test_against_many_digits(function: Callable[[Tensor], Tensor]) -> None:
    z = torch.tensor(PLACES, dtype=torch.complex128)
    found = [exact(function.__name__, each) for each in PLACES]
    truth = torch.tensor(found, dtype=torch.complex128)
    assert ((function(z) - truth).abs() / truth.abs()).max() < 2e-15
    real = z.real[z.imag == 0]
    assert (function(real) - truth.real[z.imag == 0]).abs().max() < 2e-15


def test_the_derivative_is_the_gradient() -> None:
    z = torch.tensor([0.0, 1e-9, 0.3, 0.6, -2.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(phi1(z).sum(), z)
    torch.testing.assert_close(gradient, phi1_derivative(z.detach()), rtol=1e-13, atol=0)
    complex_z = torch.tensor([0, 1e-5 + 1j, 2 - 3j], dtype=torch.complex128, requires_grad=True)
    assert gradcheck(phi1, complex_z)
    assert gradcheck(phi2, complex_z)
