"""Linear systems for tests, and how far two tensors are apart."""

import doctest
import importlib

import torch
from torch import Tensor

import adder


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64, the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stable(n: int, p: int, q: int, *, seed: int = 0) -> adder.StateSpace:
    """A dense system, every mode of which decays."""
    A = normal(n, n, seed=seed) - (2 + n**0.5) * torch.eye(n, dtype=torch.float64)
    direct = normal(q, p, seed=seed + 3)
    return adder.StateSpace(A, normal(n, p, seed=seed + 1), normal(q, n, seed=seed + 2), direct)


def apart(got: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value."""
    got, expected = torch.as_tensor(got), torch.as_tensor(expected)
    assert got.shape == expected.shape, (got.shape, expected.shape)
    return float((got - expected).abs().max() / expected.abs().max())


def run_examples(module: str) -> None:
    """Run the examples in the docstrings of a module, of which there are some."""
    loaded = importlib.import_module(module)
    names = {"torch": torch, "adder": adder, "hippo": adder.hippo}
    result = doctest.testmod(loaded, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0
