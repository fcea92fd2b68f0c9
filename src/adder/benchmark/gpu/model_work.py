"""The least work of a model: of a prompt, of a token of each stream, of a step of training."""

import itertools
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from adder.benchmark.gpu.limits import Work
from adder.benchmark.model import flops_per_token
from adder.models import LanguageModelConfig


def of_prompt(config: LanguageModelConfig, weights: int, length: int) -> Work:
    """Every weight is read once; the head is needed for the last token alone."""
    return Work(weights, length * _scanned(config), length * products(config, head=False))


def of_token(config: LanguageModelConfig, weights: int, state: int, streams: int) -> Work:
    """A Mamba's state is read and written; a Transformer's keys and values are read."""
    moved = weights + (2 if config.layer == "mamba" else 1) * state
    return Work(moved, streams * _scanned(config), streams * products(config, head=True))


def of_training(config: LanguageModelConfig, tokens: int) -> Work:
    """Backward has two products for each one, and computes the exponentials of the scan again."""
    return Work(0.0, 2 * tokens * _scanned(config), 3 * tokens * products(config, head=True))


def of_block(d_model: int, tokens: int) -> Work:
    """A block of Mamba, forward and backward."""
    config = LanguageModelConfig(vocab_size=8, d_model=d_model, n_layer=1)
    flops = 3.0 * tokens * flops_per_token(config, head=False)
    return Work(0.0, 2 * tokens * _scanned(config), flops)


def products(config: LanguageModelConfig, head: bool) -> float:
    """Operations of the matrix products of one token, of a Mamba or of a Transformer without its attention."""
    if config.layer == "mamba":
        return flops_per_token(config, head)
    d, inner = config.d_model, config.d_inner
    block = 4 * d * d + 3 * d * inner
    return 2.0 * (config.n_layer * block + (config.vocab_size * d if head else 0))


def _scanned(config: LanguageModelConfig) -> float:
    """Exponentials of the scans of one token."""
    return config.n_layer * config.d_inner * config.d_state if config.layer == "mamba" else 0.0


def state_bytes(config: LanguageModelConfig, streams: int) -> int:
    """Bytes of the states of a Mamba in bfloat16: float32 for the scan, bfloat16 for the convolution."""
    inner, n, taps = config.d_inner, config.d_state, config.d_conv
    return streams * config.n_layer * inner * (4 * n + 2 * (taps - 1))


def bytes_of(state: Any) -> int:
    """Bytes of all tensors in a state."""
    return sum(each.nbytes for each in _tensors(state))


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | tuple | list):
        parts = state.values() if isinstance(state, dict) else state
        yield from itertools.chain.from_iterable(map(_tensors, parts))
