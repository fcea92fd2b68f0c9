"""What every reader of labelled sequences hands over."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Part:
    """Sequences end to end, with the name of a class for each; see `Sequences`."""

    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """What a source holds. `vocabulary` is how many tokens there are, where it was read as tokens."""

    train: Part
    test: Part | None
    scale: float = 1.0
    sampling_rate: float | None = None
    vocabulary: int | None = None


def of_one_length(values: npt.NDArray[Any], names: Sequence[str]) -> Part:
    """A part of values (k, l, d)."""
    count, length, channels = values.shape
    offsets = np.arange(count + 1, dtype=np.int64) * length
    return Part(values.reshape(count * length, channels), offsets, tuple(names))


def of_lengths(
    values: npt.NDArray[Any], lengths: npt.NDArray[np.int64], names: Sequence[str]
) -> Part:
    """A part of padded values (k, l, d), of which the first lengths[i] steps of each are real."""
    real = np.arange(values.shape[1]) < lengths[:, None]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Part(values[real], offsets, tuple(names))
