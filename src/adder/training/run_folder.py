"""The folder of a run: made whole, used by one process at a time, opened to read a model."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adder.data.vocabulary import VOCABULARY, Vocabulary
from adder.errors import AdderError, DamagedFile, UsageError
from adder.files import flush_folder, json_bytes, parse_json, shell_word, write_file
from adder.models.checkpoint import fill
from adder.models.classifier import SequenceClassifier
from adder.models.classifier_config import SequenceClassifierConfig
from adder.models.config import LanguageModelConfig
from adder.models.language_model import LanguageModel
from adder.training.checkpoint import (
    CHECKPOINTS,
    MANIFEST,
    Checkpoint,
    checkpoint_step,
    list_checkpoints,
    newest_good,
    read_checkpoint,
    write_checkpoint,
)
from adder.training.config import ClassificationConfig, Settings, TrainingConfig

# Of a run's config.json: 1 is a language model's, 2 names its task.
FORMATS = {"text": 1, "classification": 2}
CONFIG = "config.json"
LOCK = "lock"
SOURCE_COPY = "source.txt"


@dataclass(frozen=True)
class RunConfig:
    """What config.json holds: the model, the training as it began, and where the data is."""

    model: LanguageModelConfig | SequenceClassifierConfig
    training: Settings
    source: dict[str, Any]

    @property
    def task(self) -> str:
        """ "text" or "classification"."""
        return "text" if isinstance(self.model, LanguageModelConfig) else "classification"

    @property
    def files(self) -> tuple[str, ...]:
        """The files of the run that every checkpoint seals."""
        return (CONFIG, VOCABULARY) if self.task == "text" else (CONFIG,)

    def to_dict(self) -> dict[str, Any]:
        task = {} if self.task == "text" else {"task": self.task}
        return {
            "format": FORMATS[self.task],
            **task,
            "model": self.model.to_dict(),
            "training": self.training.to_dict(),
            "source": self.source,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunConfig":
        task = values.get("task", "text")
        if task not in FORMATS or values.get("format") != FORMATS[task]:
            raise UsageError(f"its format is {values.get('format')!r}, of the task {task!r}")
        for part in ("model", "training", "source"):
            if not isinstance(values.get(part), dict):
                raise UsageError(f"it lacks its {part}")
        model, training, source = values["model"], values["training"], values["source"]
        if task == "text":
            sizes = LanguageModelConfig.from_dict(model)
            return cls(sizes, TrainingConfig.from_dict(training), source)
        return cls(
            SequenceClassifierConfig.from_dict(model),
            ClassificationConfig.from_dict(training),
            source,
        )


@dataclass(frozen=True)
class Run:
    """A run at one of its checkpoints, every byte of which was checked.

    Args:
        path: the run folder.
        checkpoint: the checkpoint that was opened.
        words: the vocabulary of a language model; see `vocabulary`.
    """

    path: Path
    config: RunConfig
    checkpoint: Checkpoint
    words: Vocabulary | None

    @property
    def step(self) -> int:
        """How many updates the model has had."""
        return self.checkpoint.step

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.checkpoint.model

    @property
    def training(self) -> Settings:
        """The settings at this checkpoint."""
        return type(self.config.training).from_dict(self.checkpoint.settings)

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of a language model's run; UsageError for another."""
        self._language_model_config()
        assert self.words is not None
        return self.words

    def model(self) -> LanguageModel:
        """The language model on the CPU, in evaluation mode; UsageError for a classifier's run."""
        model = LanguageModel(self._language_model_config())
        fill(model, self.tensors, self.path)
        return model.eval()

    def classifier(self) -> SequenceClassifier:
        """The classifier on the CPU, in evaluation mode; UsageError for a language model's run."""
        if not isinstance(self.config.model, SequenceClassifierConfig):
            raise UsageError(
                f"{self.path} is a language model, not a classifier: "
                "adder generate and adder evaluate read it"
            )
        model = SequenceClassifier(self.config.model)
        fill(model, self.tensors, self.path)
        return model.eval()

    def _language_model_config(self) -> LanguageModelConfig:
        if not isinstance(self.config.model, LanguageModelConfig):
            raise UsageError(
                f"{self.path} is a classifier, not a language model: "
                "adder evaluate and adder classify read it"
            )
        return self.config.model


def open_run(path: str | Path, checkpoint: str | None = None) -> Run:
    """Open a run at its newest checkpoint, or at the one that is named.

    Args:
        path: the folder that `adder train` wrote, or one of its checkpoint folders.
        checkpoint: a name such as "step-00000200".

    Raises:
        UsageError: the folder is no run, or has no such checkpoint.
        DamagedFile: a file is not what adder wrote. An older checkpoint is never read in its
            place, but the message names the newest good one.
    """
    run = run_of(Path(path))
    checkpoint = _split(Path(path), checkpoint)[1]
    for _ in range(3):
        folder = _choose(run, checkpoint)
        try:
            return _open(run, folder)
        except DamagedFile as error:
            if checkpoint is None and not folder.exists():
                continue  # removed by the training process, which wrote a newer one
            others = [f for f in list_checkpoints(run) if f != folder]
            good = newest_good(others)
            hint = f"; the newest good checkpoint is {good}: give that folder" if good else ""
            raise DamagedFile(f"{error}{hint}") from None
    raise AdderError(f"the checkpoints of {run} are replaced faster than they can be read")


def run_of(path: Path) -> Path:
    """The run folder of a path that is one, or one of its checkpoints; UsageError for others."""
    run, _ = _split(path, None)
    if not run.is_dir():
        raise UsageError(
            f"there is no folder {run}: give a run that adder train has written, or the folder of a model"
        )
    if not (run / CHECKPOINTS).is_dir():
        raise UsageError(f"{run} is no run: give a folder that adder train has written")
    return run


def create_run(
    path: Path,
    config: RunConfig,
    first: Checkpoint,
    more: dict[str, bytes],
) -> None:
    """Make a run folder with its first checkpoint: it appears whole, under its name, or not at all.

    Args:
        more: further files of the run, by name: its vocabulary, a copy of its text.

    Raises:
        UsageError: the path is taken.
        AdderError: the disk refuses.
    """
    refuse_taken(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        temporary.mkdir(parents=True)
        write_file(temporary / CONFIG, json_bytes(config.to_dict()))
        for name, data in more.items():
            write_file(temporary / name, data)
        (temporary / LOCK).touch()
        write_checkpoint(temporary, first, config.files)
        temporary.rename(path)
        flush_folder(path.parent)
    except OSError as error:
        raise AdderError(f"cannot make the run {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_taken(path: Path) -> None:
    """UsageError where a run cannot be made at `path`, most often because something is there."""
    if not path.name:
        raise UsageError(f"{path} is no name for a run: give another --output")
    try:
        if (path / CHECKPOINTS).is_dir():
            raise UsageError(
                f"{path} already holds a run: continue it with --resume {shell_word(path)}, "
                "or give another --output"
            )
        if path.is_dir() and any(path.iterdir()):
            raise UsageError(f"{path} is not empty: give another --output")
    except OSError as error:
        raise AdderError(f"cannot look into {path}: {error.strerror or error}") from None
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file: give another --output")


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run for this process: no second one may write to it. The lock dies with the process.

    Raises:
        AdderError: another process holds it, or the folder is read-only.
    """
    try:
        descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise AdderError(f"cannot write to {run}: {error.strerror or error}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise AdderError(
            f"the run {run} is in use by another process: wait for it to end"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def _split(path: Path, checkpoint: str | None) -> tuple[Path, str | None]:
    """A run and the name of a checkpoint, of a path that may be either."""
    resolved = path.resolve()
    if checkpoint_step(resolved) >= 0 and resolved.parent.name == CHECKPOINTS:
        return resolved.parent.parent, checkpoint or resolved.name
    if path.name == MANIFEST:
        return _split(path.parent, checkpoint)
    return path, checkpoint


def _choose(run: Path, checkpoint: str | None) -> Path:
    folders = list_checkpoints(run)
    if not folders:
        raise DamagedFile(f"the run {run} has lost its checkpoints")
    if checkpoint is None:
        return folders[-1]
    for folder in folders:
        if folder.name == checkpoint or str(checkpoint_step(folder)) == checkpoint:
            return folder
    names = ", ".join(folder.name for folder in folders)
    raise UsageError(f"the run {run} has no checkpoint {checkpoint}: it has {names}")


def _open(run: Path, folder: Path) -> Run:
    checkpoint = read_checkpoint(folder)
    try:
        config = RunConfig.from_dict(parse_json((run / CONFIG).read_bytes(), run / CONFIG))
        type(config.training).from_dict(checkpoint.settings)
    except UsageError as error:
        raise DamagedFile(f"{run / CONFIG} is of another version of adder: {error}") from None
    if not isinstance(config.model, LanguageModelConfig):
        return Run(run, config, checkpoint, None)
    vocabulary = Vocabulary.load(run / VOCABULARY)
    if vocabulary.size != config.model.vocab_size:
        raise DamagedFile(f"{run / VOCABULARY} does not belong to the model in {run / CONFIG}")
    return Run(run, config, checkpoint, vocabulary)
