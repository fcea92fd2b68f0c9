"""A training in progress: made new, or taken up at a checkpoint, with the run folder locked."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adder.data.labelled import LabelledOptions, read_labelled
from adder.data.synthetic import Synthetic
from adder.data.text import STANDARD_INPUT, read_source
from adder.data.vocabulary import VOCABULARY, make_vocabulary
from adder.errors import UsageError
from adder.models.checkpoint import fill, model_tensors
from adder.models.classifier import SequenceClassifier
from adder.models.config import LanguageModelConfig
from adder.models.language_model import LanguageModel
from adder.training.checkpoint import Checkpoint, remove_checkpoints_after, write_checkpoint
from adder.training.classification import (
    ClassificationTask,
    classifier_config,
    labelled_record,
    read_run_labelled,
)
from adder.training.config import ClassificationConfig, Settings, TrainingConfig
from adder.training.learner import Learner
from adder.training.memory import check_memory, free_memory, memory_errors
from adder.training.run_folder import (
    SOURCE_COPY,
    Run,
    RunConfig,
    create_run,
    locked,
    open_run,
    refuse_taken,
    run_of,
)
from adder.training.synthetic import SyntheticTask, run_synthetic, synthetic_record
from adder.training.task import Task
from adder.training.text import TextTask, read_run_source, source_record

CHANGEABLE = frozenset(
    {"steps", "learning_rate", "minimum_learning_rate", "warmup", "clip", "evaluate_every"}
    | {"evaluation_tokens", "evaluation_sequences", "save_every", "keep", "checkpoint_layers"}
)


@dataclass
class Session:
    """All that the training loop works on. `step` counts the updates that were made."""

    path: Path
    config: RunConfig
    training: Settings
    task: Task
    learner: Learner
    step: int = 0

    def save(self) -> Path:
        """Write a checkpoint of this moment."""
        return write_checkpoint(self.path, self.checkpoint(), self.config.files)

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            self.step,
            self.training.to_dict(),
            model_tensors(self.learner.model),
            self.learner.to_tensors(),
        )


@contextmanager
def start_run(
    output: Path,
    *,
    source: str | None,
    vocabulary: str,
    model: dict[str, Any],
    training: TrainingConfig,
    device: torch.device,
) -> Iterator[Session]:
    """Make a new run of a language model and hold its lock.

    Args:
        output: the run folder to make.
        source: as `read_source` takes it.
        vocabulary: as `make_vocabulary` takes it.
        model: keyword arguments of LanguageModelConfig, but for vocab_size.

    Raises:
        UsageError: the output is taken, the source is unfit or too short, the sizes impossible.
    """
    refuse_taken(output)
    text = read_source(source)
    words = make_vocabulary(vocabulary, text.text)
    sizes = LanguageModelConfig(vocab_size=words.size, **model)
    if sizes.layer == "transformer" and training.carry_state:
        raise UsageError(
            "a transformer carries no state from step to step, since its state holds all it has read: "
            "give --no-carry-state"
        )
    config = RunConfig(sizes, training, source_record(text))
    session = _prepare(output, config, training, TextTask(text, words, training), device)
    more = {VOCABULARY: words.to_json().encode("utf-8")}
    if text.name == STANDARD_INPUT:
        more[SOURCE_COPY] = text.text.encode("utf-8")
    create_run(output, config, session.checkpoint(), more)
    with locked(output):
        yield session


@contextmanager
def start_synthetic(
    output: Path,
    *,
    source: Synthetic,
    model: dict[str, Any],
    training: TrainingConfig,
    device: torch.device,
) -> Iterator[Session]:
    """Make a new run of a language model on sequences with known answers and hold its lock.

    Args:
        model: keyword arguments of LanguageModelConfig, but for vocab_size.

    Raises:
        UsageError: the output is taken, the sizes are impossible.
    """
    refuse_taken(output)
    sizes = LanguageModelConfig(vocab_size=source.vocab_size, **model)
    config = RunConfig(sizes, training, synthetic_record(source))
    session = _prepare(output, config, training, SyntheticTask(source, training), device)
    words = source.vocabulary.to_json().encode("utf-8")
    create_run(output, config, session.checkpoint(), {VOCABULARY: words})
    with locked(output):
        yield session


@contextmanager
def start_classification(
    output: Path,
    *,
    source: str,
    options: LabelledOptions,
    model: dict[str, Any],
    training: ClassificationConfig,
    device: torch.device,
) -> Iterator[Session]:
    """Make a new run of a classifier and hold its lock.

    Args:
        output: the run folder to make.
        source, options: as `read_labelled` takes them.
        model: keyword arguments of SequenceClassifierConfig, but for those that the data decides.

    Raises:
        UsageError: the output is taken, the source is unfit, the sizes impossible.
        DamagedFile: a file of the source is damaged.
    """
    refuse_taken(output)
    data = read_labelled(source, options, memory=free_memory())
    task = ClassificationTask(data, training)
    sizes = classifier_config(data, task.training_indices, model)
    config = RunConfig(sizes, training, labelled_record(data))
    session = _prepare(output, config, training, task, device)
    create_run(output, config, session.checkpoint(), {})
    with locked(output):
        yield session


@contextmanager
def resume_run(path: Path, *, changes: dict[str, Any], device: torch.device) -> Iterator[Session]:
    """Take up a run at its newest checkpoint, or at the checkpoint folder that is given.

    The run then continues as if it had never stopped; checkpoints after this one are removed.

    Args:
        changes: settings that differ from now on; those in CHANGEABLE only.

    Raises:
        UsageError: the folder is no run, the source has changed, or no steps are left.
        DamagedFile: a file of the run is not what was written.
        AdderError: another process trains this run.
    """
    if refused := sorted(changes.keys() - CHANGEABLE):
        raise UsageError(f"{refused[0]} cannot change when a run is resumed: start a new one")
    with locked(run_of(path)):
        run = open_run(path)
        known = {field.name for field in dataclasses.fields(run.training)}
        if unknown := sorted(changes.keys() - known):
            raise UsageError(f"{unknown[0]} is no setting of the run {run.path}")
        training = dataclasses.replace(run.training, **changes)
        if run.step >= training.steps:
            raise UsageError(
                f"the run {run.path} has made all its {training.steps} steps: "
                "give more with --steps"
            )
        session = _prepare(run.path, run.config, training, _task(run, training), device)
        fill(session.learner.model, run.tensors, run.path)
        session.learner.load_tensors(run.checkpoint.training, str(run.path))
        session.step = run.step
        remove_checkpoints_after(run.path, run.step)
        yield session


def _task(run: Run, training: Settings) -> Task:
    if isinstance(training, TrainingConfig):
        source = run_synthetic(run.config.source, run.path)
        if source is not None:
            return SyntheticTask(source, training)
        return TextTask(read_run_source(run), run.vocabulary, training)
    assert isinstance(training, ClassificationConfig)
    return ClassificationTask(read_run_labelled(run), training)


def _prepare(
    path: Path, config: RunConfig, training: Settings, task: Task, device: torch.device
) -> Session:
    check_memory(config.model, training, device, length=task.longest)
    torch.manual_seed(training.seed)
    with memory_errors():
        model = (
            LanguageModel(config.model)
            if isinstance(config.model, LanguageModelConfig)
            else SequenceClassifier(config.model)
        )
        if getattr(training, "checkpoint_layers", False) and isinstance(model, LanguageModel):
            model.gradient_checkpointing_enable()
        learner = Learner(model, training, device, task.loss)
    return Session(path, config, training, task, learner)
