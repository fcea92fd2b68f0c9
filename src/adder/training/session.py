"""A training in progress: made new, or taken up at a checkpoint, with the run folder locked."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adder.data.text import STANDARD_INPUT, Text, read_source, split_by_position
from adder.data.vocabulary import Ids, Vocabulary, make_vocabulary
from adder.data.windows import CarriedWindows, RandomWindows, Windows
from adder.errors import UsageError
from adder.models.checkpoint import fill, model_tensors
from adder.models.config import LanguageModelConfig
from adder.models.language_model import LanguageModel
from adder.training.checkpoint import Checkpoint, remove_checkpoints_after, write_checkpoint
from adder.training.config import TrainingConfig
from adder.training.learner import Learner
from adder.training.memory import check_memory, memory_errors
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

CHANGEABLE = frozenset(
    {"steps", "learning_rate", "minimum_learning_rate", "warmup", "clip", "evaluate_every"}
    | {"evaluation_tokens", "save_every", "keep"}
)


@dataclass
class Session:
    """All that the training loop works on. `step` counts the updates that were made."""

    path: Path
    config: RunConfig
    training: TrainingConfig
    vocabulary: Vocabulary
    learner: Learner
    windows: Windows
    validation_ids: Ids
    validation_bytes: int
    step: int = 0

    def save(self) -> Path:
        """Write a checkpoint of this moment."""
        return write_checkpoint(self.path, self.checkpoint())

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
    """Make a new run and hold its lock.

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
    config = RunConfig(
        LanguageModelConfig(vocab_size=words.size, **model),
        training,
        {
            "name": SOURCE_COPY if text.name == STANDARD_INPUT else text.name,
            "size_in_bytes": text.size_in_bytes,
            "sha256": text.sha256,
        },
    )
    session = _prepare(output, config, training, words, text, device)
    copy = {SOURCE_COPY: text.text.encode("utf-8")} if text.name == STANDARD_INPUT else {}
    create_run(output, config, words, session.checkpoint(), copy)
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
        training = dataclasses.replace(TrainingConfig.from_dict(run.checkpoint.settings), **changes)
        if run.step >= training.steps:
            raise UsageError(
                f"the run {run.path} has made all its {training.steps} steps: "
                "give more with --steps"
            )
        text = read_run_source(run)
        session = _prepare(run.path, run.config, training, run.vocabulary, text, device)
        fill(session.learner.model, run.tensors, run.path)
        session.learner.load_tensors(run.checkpoint.training, str(run.path))
        session.step = run.step
        remove_checkpoints_after(run.path, run.step)
        yield session


def read_run_source(run: Run) -> Text:
    """The text a run was made from; UsageError where it is gone or has changed since."""
    record = run.config.source
    name = str(record.get("name"))
    try:
        text = read_source(str(run.path / name) if name == SOURCE_COPY else name)
    except UsageError as error:
        raise UsageError(f"the text of the run {run.path} is gone: {error}") from None
    if text.sha256 != record.get("sha256"):
        raise UsageError(
            f"the text of the run {run.path}, {name}, has changed since the run began: "
            "put the old one back"
        )
    return text


def _prepare(
    path: Path,
    config: RunConfig,
    training: TrainingConfig,
    vocabulary: Vocabulary,
    text: Text,
    device: torch.device,
) -> Session:
    first, second = split_by_position(text.text, training.validation)
    if training.validation and not second:
        raise UsageError(
            f"the source is too short to split: {training.validation:g} of its "
            f"{len(text.text)} characters is nothing; give a longer one, or --validation 0"
        )
    ids = vocabulary.encode(first)
    kind = CarriedWindows if training.carry_state else RandomWindows
    windows = kind(ids, training.rows, training.length, training.seed)
    validation_ids = vocabulary.encode(second)
    if training.validation and validation_ids.size < 2:
        raise UsageError(
            f"the validation part has {validation_ids.size} token, at least 2 are needed: "
            "give a longer source, or --validation 0"
        )
    check_memory(config.model, training, device)
    torch.manual_seed(training.seed)
    with memory_errors():
        learner = Learner(LanguageModel(config.model), training, device)
    size = len(second.encode("utf-8"))
    return Session(path, config, training, vocabulary, learner, windows, validation_ids, size)
