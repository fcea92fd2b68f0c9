"""Inputs for tests: the same numbers each time, and packed sequences."""

import torch
from torch import Tensor


def normals(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Return float32 tensors of standard normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def lengths_of(length: int) -> list[int]:
    """Return lengths that add up: one step, then some, then the rest."""
    first = [1, 2, length // 3]
    return [*first, length - sum(first)] if length > 6 else [length]


def seq_idx_of(batch: int, lengths: list[int]) -> Tensor:
    """Return (b, l) int32 that numbers sequences of these lengths, the same in every row."""
    numbers = [torch.full((n,), 3 * i - 2, dtype=torch.int32) for i, n in enumerate(lengths)]
    return torch.cat(numbers).repeat(batch, 1)
