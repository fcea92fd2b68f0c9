"""How well a classifier tells sequences apart, whichever way it reads them: all at once, or in chunks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from adder.data.sequences import Indices, LabelledBatch, Sequences
from adder.layers.state import map_state
from adder.models.classifier import SequenceClassifier

_NUMBERS_AT_ONCE = 2**24
_MOST_ROWS = 256

# progress(steps that were read, steps in all)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reading:
    """What a classifier made of some sequences, in order of length.

    Args:
        logits: (k, classes) float32, on the CPU.
        labels: (k): the classes they have.
    """

    logits: Tensor
    labels: Tensor

    @property
    def count(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> int:
        """How many were told right."""
        return int((self.logits.argmax(-1) == self.labels).sum())

    @property
    def accuracy(self) -> float:
        return self.right / max(1, self.count)

    @property
    def loss(self) -> float:
        """Nats per sequence."""
        nats = F.cross_entropy(self.logits.double(), self.labels, reduction="sum").item()
        return nats / max(1, self.count)


@dataclass(frozen=True)
class Comparison:
    """Two ways to read the same sequences."""

    convolution: Reading
    recurrence: Reading

    @property
    def predictions_that_differ(self) -> int:
        one, other = (each.logits.argmax(-1) for each in (self.convolution, self.recurrence))
        return int((one != other).sum())

    @property
    def largest_difference(self) -> float:
        """Of two logits."""
        return float((self.convolution.logits - self.recurrence.logits).abs().max())

    @property
    def largest_logit(self) -> float:
        return float(self.convolution.logits.abs().max())


def read_classes(
    model: SequenceClassifier,
    data: Sequences,
    indices: Indices,
    *,
    rows: int | None = None,
    chunk: int | None = None,
    rate: float = 1.0,
    stopped: Callable[[], bool] | None = None,
    progress: Progress | None = None,
) -> Reading:
    """Read sequences, in evaluation mode.

    Args:
        rows: sequences side by side; None for as many as modest memory holds. The result does not depend
            on it.
        chunk: None reads each whole, as a convolution; otherwise as a recurrence, so many steps at once.
        rate: see `SequenceClassifier.forward`.
        stopped: asked between batches; what was read until then comes back.
        progress: told as it goes.
    """
    longest = int(data.lengths[indices].max(initial=1))
    if rows is None:
        rows = _MOST_ROWS if chunk is not None else _rows_at_once(model, longest)
    logits, labels = [torch.empty(0, model.config.classes)], [torch.empty(0, dtype=torch.int64)]
    with _evaluating(model):
        steps = _Steps(data, indices, rows, progress)
        for batch in data.in_batches(indices, rows):
            if stopped is not None and stopped():
                break
            if chunk is None:
                logits.append(_whole(model, batch, rate))
                steps.add(batch.inputs.shape[1])
            else:
                logits.append(_in_chunks(model, batch, chunk, rate, steps.add))
            labels.append(batch.labels)
    return Reading(torch.cat(logits), torch.cat(labels))


def compare_views(
    model: SequenceClassifier,
    data: Sequences,
    indices: Indices,
    *,
    chunk: int = 1,
    rate: float = 1.0,
    progress: Progress | None = None,
) -> Comparison:
    """Read sequences both ways; the arguments are those of `read_classes`."""
    return Comparison(
        read_classes(model, data, indices, rate=rate),
        read_classes(model, data, indices, chunk=chunk, rate=rate, progress=progress),
    )


def _rows_at_once(model: SequenceClassifier, length: int) -> int:
    return max(1, min(_MOST_ROWS, _NUMBERS_AT_ONCE // (length * model.config.d_model)))


class _Steps:
    """Counts the steps that were read, of all that there are."""

    def __init__(
        self, data: Sequences, indices: Indices, rows: int, progress: Progress | None
    ) -> None:
        lengths = sorted(data.lengths[indices].tolist())
        # A batch takes as many steps as its longest row, which is its last.
        ends = [*range(rows - 1, len(lengths), rows), len(lengths) - 1]
        self.total = sum(lengths[end] for end in sorted(set(ends)) if end >= 0)
        self.done = 0
        self.progress = progress

    def add(self, steps: int) -> None:
        self.done += steps
        if self.progress is not None:
            self.progress(self.done, self.total)


def _whole(model: SequenceClassifier, batch: LabelledBatch, rate: float) -> Tensor:
    device = model.decoder.weight.device
    lengths = None if batch.lengths is None else batch.lengths.to(device)
    logits: Tensor = model(batch.inputs.to(device), lengths, rate=rate).logits
    return logits.float().cpu()


def _in_chunks(
    model: SequenceClassifier,
    batch: LabelledBatch,
    chunk: int,
    rate: float,
    count: Callable[[int], None],
) -> Tensor:
    """A chunk also ends where a row does: that row then leaves, so that no padding is ever read."""
    inputs = batch.inputs.to(model.decoder.weight.device)
    rows = torch.arange(len(inputs))
    lengths = torch.full_like(rows, inputs.shape[1]) if batch.lengths is None else batch.lengths
    found = torch.empty(len(inputs), model.config.classes)
    state, place = model.initial_state(len(inputs)), 0
    while len(rows):
        end = min(place + chunk, int(lengths[rows].min()))
        output = model(inputs[rows.to(inputs.device), place:end], state=state, rate=rate)
        assert output.state is not None
        count(end - place)
        state, place = output.state, end
        done = lengths[rows] == end
        if bool(done.any()):
            found[rows[done]] = output.logits.float().cpu()[done]
            kept = ~done
            state = map_state(lambda x, kept=kept: x[kept.to(x.device)], state)  # type: ignore[misc]
            rows = rows[kept]
    return found


@contextmanager
def _evaluating(model: SequenceClassifier) -> Iterator[None]:
    """Evaluation mode without gradients, and the mode as it was afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
