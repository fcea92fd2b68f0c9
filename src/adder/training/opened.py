"""A model that is there, in a run or in a folder of its own, and the data it is evaluated on."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adder.data.labelled import Labelled, LabelledOptions, read_labelled
from adder.data.sequences import Indices, Sequences, held_out
from adder.data.vocabulary import TOKENIZER, VOCABULARY, Tokens, Vocabulary, find_vocabulary
from adder.errors import DamagedFile, UsageError
from adder.models.checkpoint import kind_of
from adder.models.classifier import SequenceClassifier
from adder.models.classifier_config import SequenceClassifierConfig
from adder.models.hub import find_folder
from adder.models.language_model import LanguageModel
from adder.training.classification import read_run_labelled
from adder.training.memory import free_memory
from adder.training.run_folder import Run, open_run


@dataclass(frozen=True)
class Opened:
    """A run, or the folder of a model of no run: "language_model" or "classifier"."""

    path: Path
    run: Run | None
    kind: str

    @property
    def is_classifier(self) -> bool:
        return self.kind == "classifier"

    @property
    def step(self) -> int | None:
        return None if self.run is None else self.run.step

    def classifier(self) -> SequenceClassifier:
        """The model on the CPU, in evaluation mode."""
        if self.run is not None:
            return self.run.classifier()
        return SequenceClassifier.from_pretrained(self.path)

    def expect_language_model(self) -> None:
        """Raise UsageError where it is a classifier."""
        if self.is_classifier:
            raise UsageError(
                f"{self.path} is a classifier, not a language model: "
                "adder evaluate and adder classify read it"
            )

    def language_model(self) -> tuple[LanguageModel, Vocabulary | None]:
        """The model on the CPU, in evaluation mode, and its vocabulary: None for a folder that has none.

        Raises:
            UsageError: it is a classifier.
            DamagedFile: the vocabulary beside it is another's.
        """
        if self.run is not None:
            return self.run.model(), self.run.vocabulary
        self.expect_language_model()
        vocabulary = find_vocabulary(self.path)
        model = LanguageModel.from_pretrained(self.path)
        if vocabulary is not None and vocabulary.size != model.config.vocab_size:
            rows = model.config.padded_vocab_size
            if not isinstance(vocabulary, Tokens) or vocabulary.size > rows:
                raise DamagedFile(
                    f"{self.path}: its vocabulary has {vocabulary.size} tokens, and its model {model.config.vocab_size}"
                )
            # Published models count the padding of the embedding among their tokens.
            model.config = dataclasses.replace(
                model.config, vocab_size=vocabulary.size, pad_vocab_size_multiple=rows
            )
        return model, vocabulary

    def reader(self) -> tuple[LanguageModel, Vocabulary]:
        """A language model that reads text; UsageError where it has no vocabulary."""
        model, vocabulary = self.language_model()
        if vocabulary is None:
            raise UsageError(
                f"{self.path} holds a model without a vocabulary: put the {VOCABULARY} of its run or the {TOKENIZER} "
                "of its tokenizer beside it"
            )
        return model, vocabulary


def open_model(path: Path, checkpoint: str | None = None) -> Opened:
    """What a folder holds: a run, or a model as `save_pretrained`, `adder convert` or others write it; or what has this
    name on the Hugging Face Hub.

    Raises:
        UsageError: it is neither.
        DamagedFile: a file of a run is not what adder wrote.
    """
    path = find_folder(path)
    if (kind := kind_of(path)) is not None:
        if checkpoint is not None:
            raise UsageError(f"{path} is a model of no run: it has no checkpoint {checkpoint}")
        return Opened(path, None, kind)
    run = open_run(path, checkpoint)
    return Opened(path, run, run.config.model.kind)


@dataclass(frozen=True)
class EvaluationPart:
    """The sequences to evaluate on, and what they are."""

    data: Sequences
    indices: Indices
    name: str
    sampling_rate: float | None


def evaluation_data(
    opened: Opened, model: SequenceClassifierConfig, source: str | None, options: dict[str, Any]
) -> EvaluationPart:
    """The test part of a source; of a run's own source the part held out where it has none, and all
    of another.

    Args:
        source: None for the run's own.
        options: of LabelledOptions; not given, the run's own where the source is its own.

    Raises:
        UsageError: the source does not fit the model, or nothing was held out.
    """
    run = opened.run
    if source is None and run is None:
        raise UsageError(f"{opened.path} is a model of no run: give a SOURCE to evaluate on")
    own = run is not None and not options
    if own and source is not None and run is not None:
        own = str(Path(source).resolve()) == run.config.source.get("name")
    if own and run is not None:
        data = read_run_labelled(run)
    elif source is None:
        raise UsageError(f"--{next(iter(options)).replace('_', '-')} needs a SOURCE")
    else:
        data = read_labelled(
            source,
            LabelledOptions(tokens=model.tokens, **options),
            memory=free_memory(),
            labels=model.labels or None,
        )
    _check_fit(data, model)
    if data.test is not None:
        every = np.arange(len(data.test))
        return EvaluationPart(data.test, every, f"the test part of {data.name}", data.sampling_rate)
    if not own or run is None:
        return EvaluationPart(data.train, np.arange(len(data.train)), data.name, data.sampling_rate)
    training = run.training
    held = held_out(len(data.train), training.validation, training.seed)[1]
    if not len(held):
        raise UsageError(f"{run.path} was trained on all its sequences: give a SOURCE")
    name = f"the part held out of {data.name}"
    return EvaluationPart(data.train, held, name, data.sampling_rate)


def _check_fit(data: Labelled, model: SequenceClassifierConfig) -> None:
    if len(data.labels) != model.classes:
        raise UsageError(
            f"{data.name} has {len(data.labels)} classes, and the model {model.classes}"
        )
    if not model.tokens and data.train.channels != model.d_input:
        raise UsageError(
            f"{data.name} has {data.train.channels} channels, and the model reads {model.d_input}"
        )
    if model.vocab_size is not None and (data.vocabulary or 0) > model.vocab_size:
        raise UsageError(
            f"{data.name} has tokens up to {(data.vocabulary or 0) - 1}, "
            f"and the model knows {model.vocab_size}"
        )


def choose_rate(asked: str | None, trained: float | None, given: float | None, name: str) -> float:
    """The `rate` of a model for data of a sampling rate, of an option: a number, "auto", or None.

    Raises:
        UsageError: the rates differ, or only one of them is known, and nothing was asked for; or "auto"
            where one is not known.
    """
    if asked is None:
        if trained == given:
            return 1.0
        if trained is not None and given is not None:
            raise UsageError(
                f"{name} has {given:g} Hz, and the model was trained at {trained:g} Hz: give "
                "--rate auto to read it so, or resample it"
            )
        here, there = ("no sampling rate" if x is None else f"{x:g} Hz" for x in (given, trained))
        raise UsageError(
            f"{name} has {here}, and what the model was trained on {there}: give --rate 1 to read "
            "it step for step all the same"
        )
    if asked == "auto":
        if trained is None or given is None:
            whose = "the model" if trained is None else name
            raise UsageError(f"--rate auto: the sampling rate of {whose} is not known")
        return trained / given
    try:
        rate = float(asked)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise UsageError(f'--rate must be a positive number or "auto", got {asked}')
    return rate
