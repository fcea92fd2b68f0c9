"""Sequences of any lengths with a class each, held end to end, and the batches made of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adder.errors import UsageError

Indices = npt.NDArray[np.int64]

_PIECE = 2**20


@dataclass(frozen=True)
class LabelledBatch:
    """Some sequences side by side.

    Args:
        inputs: tokens (b l) int64, or values (b l d) float32; zeros after the end of a row.
        lengths: (b) int64, or None where all rows have the same.
        labels: (b) int64.
    """

    inputs: Tensor
    lengths: Tensor | None
    labels: Tensor
    starts: ClassVar[bool] = True  # no row continues one of another step

    def parts(self, count: int, device: torch.device) -> list[tuple[Tensor, ...]]:
        """(inputs, labels), with lengths behind them where there are any, of equal shares of the rows."""
        rows = len(self.labels) // count
        return [self._part(slice(n * rows, (n + 1) * rows), device) for n in range(count)]

    def _part(self, rows: slice, device: torch.device) -> tuple[Tensor, ...]:
        inputs, labels = self.inputs[rows], self.labels[rows].to(device)
        if self.lengths is None:
            return inputs.to(device), labels
        lengths = self.lengths[rows]
        return inputs[:, : int(lengths.max())].to(device), labels, lengths.to(device)


@dataclass(frozen=True)
class Sequences:
    """k sequences end to end, in the type they were stored in: a batch alone is float32.

    Args:
        values: (steps, d), sequence after sequence.
        offsets: (k + 1): sequence i is values[offsets[i] : offsets[i + 1]].
        labels: (k): a class for each.
        scale: what a stored value is multiplied by: 1/255 for the bytes of an image.
        tokens: the values are token ids, (steps, 1).
    """

    values: npt.NDArray[Any]
    offsets: Indices
    labels: Indices
    scale: float = 1.0
    tokens: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        return int(self.values.shape[1])

    @cached_property
    def lengths(self) -> Indices:
        """(k): steps of each sequence."""
        return np.diff(self.offsets)

    def relabelled(self, classes: Indices) -> "Sequences":
        """The same sequences, with class classes[c] where it was c."""
        return replace(self, labels=classes[self.labels])

    def row(self, index: int) -> npt.NDArray[Any]:
        """(l, d): one sequence as it is stored."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def batch(self, indices: Indices) -> LabelledBatch:
        """These sequences side by side, as long as the longest of them."""
        lengths = self.lengths[indices]
        longest = int(lengths.max())
        dtype: Any = np.int64 if self.tokens else np.float32
        inputs = np.zeros((len(indices), longest, self.channels), dtype=dtype)
        for place, index in enumerate(indices):
            inputs[place, : lengths[place]] = self.row(index)
        if self.scale != 1.0:
            inputs *= np.float32(self.scale)
        return LabelledBatch(
            torch.from_numpy(inputs[..., 0] if self.tokens else inputs),
            None if (lengths == longest).all() else torch.from_numpy(lengths),
            torch.from_numpy(self.labels[indices]),
        )

    def in_batches(self, indices: Indices, rows: int) -> Iterator[LabelledBatch]:
        """All of these, each once, sorted by length so that little is padded."""
        order = indices[np.argsort(self.lengths[indices], kind="stable")]
        for start in range(0, len(order), rows):
            yield self.batch(order[start : start + rows])

    def statistics(self, indices: Indices) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over all steps of these; 1 for a constant."""
        chosen = np.zeros(len(self), dtype=bool)
        chosen[indices] = True
        steps = np.repeat(chosen, self.lengths)
        count = int(steps.sum())
        mean = sum(piece.sum(0) for piece in self._pieces(steps)) / count
        squares = sum(((piece - mean) ** 2).sum(0) for piece in self._pieces(steps))
        deviation = np.sqrt(squares / count)
        deviation[deviation <= 1e-12 * np.maximum(1.0, np.abs(mean))] = 1.0
        if not (np.isfinite(mean).all() and np.isfinite(deviation).all()):
            raise UsageError("the values are too large: their variance is beyond double precision")
        return tuple(mean.tolist()), tuple(deviation.tolist())

    def _pieces(self, steps: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[np.float64]]:
        for start in range(0, len(steps), _PIECE):
            piece = slice(start, start + _PIECE)
            yield self.values[piece][steps[piece]].astype(np.float64) * self.scale


class Batches:
    """Which sequences each step reads: a pure function of the seed and the step.

    Every epoch is a new permutation, cut into batches; what is left over when it does not divide waits
    for another epoch. With `buckets`, stretches of the permutation that long, in batches, are
    sorted by length first and the batches then shuffled: rows of one batch have about one length.
    """

    def __init__(
        self, indices: Indices, lengths: Indices, rows: int, seed: int, buckets: int = 1
    ) -> None:
        """Batches of `rows` of `indices`; `lengths` (k) are those of all sequences, by index."""
        if rows > len(indices):
            raise UsageError(
                f"a step needs {rows} sequences, and {len(indices)} are there to train on: "
                "make --batch-size smaller"
            )
        self.indices = indices
        self.rows = rows
        self.seed = seed
        self.buckets = buckets
        self.steps_in_epoch = len(indices) // rows
        self._lengths = lengths
        self._epoch: tuple[int, Indices] = (-1, indices)

    def rows_of(self, step: int) -> Indices:
        """(rows,): the sequences of a step, counted from 0."""
        number, place = divmod(step, self.steps_in_epoch)
        if self._epoch[0] != number:
            self._epoch = (number, self._order(number))
        return self._epoch[1][place]  # type: ignore[no-any-return]

    def _order(self, epoch: int) -> Indices:
        """(steps, rows): the batches of an epoch."""
        generator = np.random.default_rng((self.seed, epoch))
        order = self.indices[generator.permutation(len(self.indices))]
        order = order[: self.steps_in_epoch * self.rows]
        if self.buckets > 1:
            stretch = self.rows * self.buckets
            for start in range(0, len(order), stretch):
                part = order[start : start + stretch]
                order[start : start + stretch] = part[
                    np.argsort(self._lengths[part], kind="stable")
                ]
        batches = order.reshape(self.steps_in_epoch, self.rows)
        return batches[generator.permutation(self.steps_in_epoch)] if self.buckets > 1 else batches


def held_out(count: int, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Which of `count` sequences are trained on, and which are held out for validation, by the seed.

    Raises:
        UsageError: the fraction of them is nothing, or all.
    """
    order = np.random.default_rng((seed, 2**32)).permutation(count).astype(np.int64)
    held = round(count * fraction)
    if fraction and not 0 < held < count:
        raise UsageError(
            f"{fraction:g} of {count} sequences for validation leaves "
            f"{held} there and {count - held} to train on: give more, or another --validation"
        )
    return np.sort(order[held:]), np.sort(order[:held])
