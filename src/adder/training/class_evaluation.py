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


@dataclass(frozen=True)
class ClassEvaluation:
    """The summed cross-entropy of `count` sequences, in nats, and how many were told right."""

    nats: float
    right: int
    count: int

    @property
    def loss(self) -> float:
        """Nats per sequence."""
        return self.nats / max(1, self.count)

    @property
    def accuracy(self) -> float:
        return self.right / max(1, self.count)


@dataclass(frozen=True)
class Comparison:
    """Two ways to read the same sequences."""

    convolution: ClassEvaluation
    recurrence: ClassEvaluation
    predictions_that_differ: int
    largest_difference: float
    largest_logit: float


def evaluate_classes(
    model: SequenceClassifier,
    data: Sequences,
    indices: Indices,
    *,
    rows: int = 64,
    chunk: int | None = None,
    rate: float = 1.0,
    stopped: Callable[[], bool] | None = None,
) -> ClassEvaluation:
    """Read sequences and count which are told right.

    Args:
        rows: sequences side by side; the result does not depend on it.
        chunk: None reads each whole, as a convolution; otherwise as a recurrence, so many steps at once.
        rate: see `SequenceClassifier.forward`.
        stopped: asked between batches; what was read until then is counted.
    """
    total = ClassEvaluation(0.0, 0, 0)
    with _evaluating(model):
        for batch in data.in_batches(indices, rows):
            if stopped is not None and stopped():
                break
            total = _add(total, class_logits(model, batch, chunk, rate), batch.labels)
    return total


def compare_views(
    model: SequenceClassifier,
    data: Sequences,
    indices: Indices,
    *,
    rows: int = 64,
    chunk: int = 1,
    rate: float = 1.0,
) -> Comparison:
    """Read sequences both ways."""
    whole = parts = ClassEvaluation(0.0, 0, 0)
    differ, difference, largest = 0, 0.0, 0.0
    with _evaluating(model):
        for batch in data.in_batches(indices, rows):
            one = class_logits(model, batch, None, rate)
            other = class_logits(model, batch, chunk, rate)
            whole = _add(whole, one, batch.labels)
            parts = _add(parts, other, batch.labels)
            differ += int((one.argmax(-1) != other.argmax(-1)).sum())
            difference = max(difference, float((one - other).abs().max()))
            largest = max(largest, float(one.abs().max()))
    return Comparison(whole, parts, differ, difference, largest)


def rows_at_once(model: SequenceClassifier, length: int) -> int:
    """Sequences of a length that an evaluation may read side by side in modest memory."""
    return max(1, min(_MOST_ROWS, _NUMBERS_AT_ONCE // (length * model.config.d_model)))


def class_logits(
    model: SequenceClassifier, batch: LabelledBatch, chunk: int | None, rate: float = 1.0
) -> Tensor:
    """(b, classes) on the CPU: read whole, or in chunks."""
    device = model.decoder.weight.device
    inputs = batch.inputs.to(device)
    if chunk is None:
        lengths = None if batch.lengths is None else batch.lengths.to(device)
        logits: Tensor = model(inputs, lengths, rate=rate).logits
        return logits.float().cpu()
    lengths = batch.lengths
    if lengths is None:
        lengths = torch.full((len(inputs),), inputs.shape[1])
    return _in_chunks(model, inputs, lengths, chunk, rate)


def _in_chunks(
    model: SequenceClassifier, inputs: Tensor, lengths: Tensor, chunk: int, rate: float
) -> Tensor:
    """A chunk also ends where a row does: that row then leaves, so that no padding is ever read."""
    found = torch.empty(len(inputs), model.config.classes)
    rows = torch.arange(len(inputs))
    state, place = model.initial_state(len(inputs)), 0
    while len(rows):
        end = min(place + chunk, int(lengths[rows].min()))
        output = model(inputs[rows.to(inputs.device), place:end], state=state, rate=rate)
        assert output.state is not None
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


def _add(total: ClassEvaluation, logits: Tensor, labels: Tensor) -> ClassEvaluation:
    nats = F.cross_entropy(logits.double(), labels, reduction="sum").item()
    right = int((logits.argmax(-1) == labels).sum())
    return ClassEvaluation(total.nats + nats, total.right + right, total.count + len(labels))
