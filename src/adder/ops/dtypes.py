"""In which type an operator computes what is stored in another."""

import torch


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which tensors stored as `dtype` are accumulated, and states are kept."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def number(dtype: torch.dtype, *, is_complex: bool) -> torch.dtype:
    """Return the type of A, and of the state, beside a signal stored as `dtype`."""
    real = arithmetic(dtype)
    if not is_complex:
        return real
    return torch.complex128 if real == torch.float64 else torch.complex64
