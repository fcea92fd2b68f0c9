"""phi_1(z) = (e^z - 1) / z and its kin, and their derivatives: exact near zero, where the quotient loses every digit.

    phi_0(z) = e^z        phi_k(z) = (phi_{k-1}(z) - 1 / (k-1)!) / z        phi_k(0) = 1 / k!

A zero-order hold needs phi_1, a first-order hold phi_2, their gradients the derivatives
(Higham, Functions of Matrices, 2008, section 10.7.4).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Taylor's series inside this radius: 14 terms leave less than 1e-16 there, and outside it the quotients lose
# less than one digit.
_RADIUS = 0.5
_TERMS = 14


def phi1(z: Tensor) -> Tensor:
    """(e^z - 1) / z, real or complex, 1 at zero. Errors stay within a few units in the last place."""
    return _Phi1.apply(z)  # type: ignore[no-any-return, no-untyped-call]


class _Phi1(torch.autograd.Function):
    """expm1(z) / z is exact to rounding wherever z is not 0; its own derivative, by autograd, is not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        zero = z == 0
        safe = torch.where(zero, 1, z)
        return torch.where(zero, 1, torch.expm1(safe) / safe)

    @staticmethod
    def setup_context(ctx, inputs, _output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        (z,) = ctx.saved_tensors
        return grad * phi1_derivative(z).conj()


def phi2(z: Tensor) -> Tensor:
    """(e^z - 1 - z) / z^2, 1/2 at zero."""
    coefficients = [1 / math.factorial(k + 2) for k in range(_TERMS)]
    return _near_or_far(z, coefficients, lambda far: (torch.expm1(far) - far) / (far * far))


def phi1_derivative(z: Tensor) -> Tensor:
    """d phi_1 / dz = (e^z - phi_1(z)) / z, 1/2 at zero."""
    coefficients = [k / math.factorial(k + 1) for k in range(1, _TERMS + 1)]
    return _near_or_far(z, coefficients, lambda far: (far.exp() - torch.expm1(far) / far) / far)


def _near_or_far(
    z: Tensor, coefficients: list[float], formula: Callable[[Tensor], Tensor]
) -> Tensor:
    """The series where |z| is small, the formula elsewhere; neither sees the other's numbers, nor do gradients."""
    near = z.abs() < _RADIUS
    small = torch.where(near, z, 0)
    total = torch.full_like(small, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * small + coefficient
    return torch.where(near, total, formula(torch.where(near, 1, z)))
