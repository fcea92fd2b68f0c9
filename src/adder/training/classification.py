"""Labelled sequences as a task: whole sequences in, one class each."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from adder.data.labelled import Labelled, LabelledOptions, read_labelled
from adder.data.sequences import Batches, Indices, LabelledBatch, held_out
from adder.errors import AdderError, DamagedFile, UsageError
from adder.layers.state import State
from adder.models.classifier import SequenceClassifier
from adder.models.classifier_config import SequenceClassifierConfig
from adder.training.class_evaluation import read_classes
from adder.training.config import ClassificationConfig
from adder.training.learner import Loss
from adder.training.memory import free_memory
from adder.training.run_folder import Run
from adder.training.task import Task


def classification_loss(
    run: Callable[..., Any], part: tuple[Tensor, ...], state: State | None
) -> Loss:
    """Nats per sequence of (inputs, labels) or (inputs, labels, lengths), and the accuracy beside it."""
    inputs, labels, *lengths = part
    output = run(inputs, *lengths, labels=labels)
    right = (output.logits.detach().argmax(-1) == labels).float().mean()
    return Loss(output.loss, state, {"accuracy": right})


class ClassificationTask(Task):
    """The class of a sequence. The test part is never looked at before the end.

    Raises:
        UsageError: there are too few sequences for the training.
    """

    unit = "sequences"
    loss_unit = "nats per sequence"
    loss = staticmethod(classification_loss)

    def __init__(self, data: Labelled, training: ClassificationConfig) -> None:
        self.data = data
        self.training = training
        self.units_per_step = training.rows
        self.to_test = 0 if data.test is None else len(data.test)
        self.training_indices, self.validation_indices = held_out(
            len(data.train), training.validation, training.seed
        )
        lengths = data.train.lengths
        self.longest = int(lengths.max())
        self.batches = Batches(
            self.training_indices, lengths, training.rows, training.seed, training.buckets
        )

    def batch(self, step: int) -> LabelledBatch:
        return self.data.train.batch(self.batches.rows_of(step))

    @property
    def validates(self) -> bool:
        return len(self.validation_indices) > 0

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        assert isinstance(model, SequenceClassifier)
        # They were drawn by the seed, in no order of class: the first are as good as any.
        chosen = _spread(self.validation_indices, self.training.evaluation_sequences)
        result = read_classes(model, self.data.train, chosen)
        return {
            "validation_loss": result.loss,
            "validation_accuracy": result.accuracy,
            "sequences_evaluated": result.count,
        }

    def test(self, model: nn.Module, stopped: Callable[[], bool]) -> dict[str, Any]:
        assert isinstance(model, SequenceClassifier)
        if self.data.test is None:
            return {}
        everything = np.arange(len(self.data.test))
        result = read_classes(model, self.data.test, everything, stopped=stopped)
        if result.count < len(everything):
            return {}
        return {
            "test_loss": result.loss,
            "test_accuracy": result.accuracy,
            "sequences_tested": result.count,
        }

    def summary(self) -> str:
        test = "" if self.data.test is None else f", {len(self.data.test):,} for testing"
        return (
            f"{len(self.training_indices):,} sequences, {len(self.validation_indices):,} for "
            f"validation{test}, {len(self.data.labels)} classes"
        )

    def step_summary(self) -> str:
        shortest = int(self.data.train.lengths.min())
        span = f"{self.longest:,}"
        if shortest != self.longest:
            span = f"{shortest:,} to {span}"
        return f"{self.training.rows} x {span} steps"


def _spread(indices: Indices, count: int) -> Indices:
    """At most `count` of them, evenly spread."""
    if len(indices) <= count:
        return indices
    return indices[np.arange(count) * len(indices) // count]


def classifier_config(
    data: Labelled, training: Indices, model: dict[str, Any]
) -> SequenceClassifierConfig:
    """The sizes of a model of these data: classes, inputs and their scaling are the data's."""
    inputs: dict[str, Any] = {"vocab_size": data.vocabulary}
    if data.vocabulary is None:
        mean, deviation = data.train.statistics(training)
        inputs = {"d_input": data.train.channels, "input_mean": mean, "input_std": deviation}
    return SequenceClassifierConfig(
        classes=len(data.labels),
        labels=data.labels,
        sampling_rate=data.sampling_rate,
        **inputs,
        **model,
    )


def labelled_record(data: Labelled) -> dict[str, Any]:
    """What config.json says of a source."""
    return {
        "name": data.name,
        "form": data.form,
        "options": data.options.to_dict(),
        "size_in_bytes": data.size_in_bytes,
        "sha256": data.sha256,
    }


def run_options(run: Run) -> LabelledOptions:
    """How the source of a run was read."""
    options = run.config.source.get("options")
    try:
        return LabelledOptions.from_dict(options)  # type: ignore[arg-type]
    except (UsageError, AttributeError, TypeError) as error:
        raise DamagedFile(f"{run.path} does not say how its source was read: {error}") from None


def read_run_labelled(run: Run) -> Labelled:
    """The sequences a run was made from; UsageError where they are gone or have changed since."""
    name = str(run.config.source.get("name"))
    try:
        data = read_labelled(name, run_options(run), memory=free_memory())
    except UsageError as error:
        raise UsageError(f"the data of the run {run.path} are gone: {error}") from None
    except DamagedFile:
        raise
    except AdderError as error:
        raise AdderError(f"the data of the run {run.path} cannot be read: {error}") from None
    if data.sha256 != run.config.source.get("sha256"):
        raise UsageError(
            f"the data of the run {run.path}, {name}, have changed since the run began: "
            "put the old ones back"
        )
    return data
