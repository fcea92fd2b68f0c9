"""e^A - 1: against many digits, for matrices that are singular, stiff, or badly scaled."""

import mpmath
import pytest
import torch
from systems import apart, normal, run_examples
from torch import Tensor
from torch.autograd import gradcheck

from adder.theory.exponential import matrix_expm1


def exactly(A: Tensor) -> Tensor:
    with mpmath.workdps(60):
        E = mpmath.expm(mpmath.matrix(A.tolist()), method="taylor") - mpmath.eye(A.shape[0])
        return torch.tensor([[float(x) for x in E[i, :]] for i in range(A.shape[0])], dtype=A.dtype)


MATRICES = {
    "zero": torch.zeros(3, 3),
    "tiny": 1e-12 * normal(4, 4),
    "Jordan block": torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, 0, 0]]),
    "Jordan block, decaying": torch.tensor([[-1.0, 1, 0], [0, -1, 1], [0, 0, -1]]),
    "normal": normal(6, 6),
    "rotation": torch.tensor([[0.0, 3], [-3, 0]]),
    "large off the diagonal": torch.tensor([[1.0, 1e6], [0, -1]]),
    "growing": 5 * torch.eye(2) + normal(2, 2),
}


@pytest.mark.parametrize("name", MATRICES)
def test_is_exact(name: str) -> None:
    A = MATRICES[name].to(torch.float64)
    expected = exactly(A)
    if name == "zero":
        assert torch.equal(matrix_expm1(A), expected)
    else:
        assert apart(matrix_expm1(A), expected) < 1e-14


@pytest.mark.parametrize("fast", [1e3, 1e6, 1e9])
def test_a_slow_mode_beside_a_fast_one_keeps_its_digits(fast: float) -> None:
    A = torch.tensor([[-fast, 0, fast], [0, -1, 2], [0, 0, -1e-3]], dtype=torch.float64)
    got = matrix_expm1(A)
    slow = torch.tensor([-1.0, -1e-3], dtype=torch.float64)
    # Repeated squaring of e^A loses log2(fast) bits here: 1e-10 for 1e6.
    assert float((torch.diagonal(got)[1:] / torch.expm1(slow) - 1).abs().max()) < 2e-15
    # A triangular matrix: entry (0, 2) is a quotient of differences.
    expected = fast / (-1e-3 + fast) * (torch.exp(slow[1]) - torch.exp(torch.tensor(-fast)))
    assert abs(got[0, 2] - expected) < 1e-14


def test_batches_are_as_one_by_one() -> None:
    A = torch.stack([1e-6 * normal(4, 4), normal(4, 4, seed=1), 100 * normal(4, 4, seed=2)])
    for one, many in zip(A, matrix_expm1(A), strict=True):
        assert apart(many, matrix_expm1(one)) < 1e-13


def test_gradient() -> None:
    assert gradcheck(matrix_expm1, [(3 * normal(3, 3)).requires_grad_()])


def test_example_runs() -> None:
    run_examples("adder.theory.exponential")
