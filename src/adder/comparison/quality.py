"""How much a model learns from a number of tokens: of text, and of tasks whose answers are known."""

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from torch import nn

from adder.data.synthetic import Synthetic
from adder.data.text import Text
from adder.data.vocabulary import Bytes
from adder.data.windows import Window
from adder.models import LanguageModel
from adder.training.config import TrainingConfig
from adder.training.evaluation import evaluate_text
from adder.training.learner import Learner, LossFunction
from adder.training.schedule import learning_rate
from adder.training.synthetic import SyntheticTask, answer
from adder.training.text import TextTask

# The least number of rows. The standard error of a share is 1 / (2 sqrt(rows)) at most: 6 % of 64, 13 % of 16; those
# of more than _LONG tokens take minutes, and are fewer.
_LONG, _ROWS, _LONG_ROWS = 4096, 64, 16


class OutOfTime(Exception):
    """What is left to do does not fit; the message says what, and why."""


class Found(NamedTuple):
    """A figure of quality: its unit, its value, and how many answers (of a text: bytes) were asked for it."""

    unit: str
    value: float
    asked: int


class Subject(Protocol):
    """What is learned, and figures of how well it was, each as soon as it is there."""

    vocab_size: int

    @property
    def loss(self) -> LossFunction: ...

    def batch(self, step: int) -> Window: ...

    def evaluate(self, model: LanguageModel, deadline: float = math.inf) -> Iterator[Found]: ...


class Reading:
    """The next byte of a text; bits per byte on its last part, in windows as long as those of the training.

    Every window is read from no state: a state that is carried on would be an advantage that a Transformer lacks.
    """

    vocab_size = 256

    def __init__(self, text: Text, config: TrainingConfig):
        self.task = TextTask(text, Bytes(), config)
        self.loss, self.batch = self.task.loss, self.task.batch
        self.ids = self.task.validation_ids[: config.evaluation_tokens + 1]
        self.length = config.length

    def evaluate(self, model: LanguageModel, deadline: float = math.inf) -> Iterator[Found]:  # noqa: ARG002
        rows = max(1, (self.ids.size - 1) // self.length)
        found = evaluate_text(model, self.ids, length=self.length, rows=rows)
        yield Found("bits per byte", found.bits_per(found.tokens), found.tokens)


class Answering:
    """The share of answers that are right, on rows that no training saw, at each of some lengths."""

    def __init__(self, source: Synthetic, config: TrainingConfig, lengths: tuple[int, ...]):
        self.task, self.lengths = SyntheticTask(source, config), lengths
        self.loss, self.batch = self.task.loss, self.task.batch
        self.vocab_size = source.vocab_size

    def evaluate(self, model: LanguageModel, deadline: float = math.inf) -> Iterator[Found]:
        """Ask at one length after the other; at the first in any case.

        Raises:
            OutOfTime: a length would pass the deadline, taking it to cost what theory says of the one before.
        """
        config = self.task.training
        power = 2 if model.config.layer == "transformer" else 1
        rate = 0.0  # seconds of a row, by length^power
        for length in self.lengths:
            rows = max(_ROWS if length <= _LONG else _LONG_ROWS, config.evaluation_tokens // length)
            began = time.monotonic()
            expected = rate * rows * length**power
            if rate and began + expected > deadline:
                raise OutOfTime(
                    f"right at {length:,} tokens and more: {rows} rows would take {expected:.0f} s, and "
                    f"{max(0.0, deadline - began):.0f} s were left"
                )
            right = answer(model, self.task.source, rows, length, config.seed)
            rate = (time.monotonic() - began) / (rows * length**power)
            yield Found(f"right at {length}", right.accuracy, right.asked)


def train(
    model: LanguageModel,
    subject: Subject,
    config: TrainingConfig,
    *,
    deadline: float,
    say: Callable[[int], None] = lambda _: None,
) -> Iterator[Found]:
    """Train for config.steps and yield the figures of `subject`.

    Args:
        deadline: of time.monotonic. Whether the steps fit is judged from the first ten.
        say: told the number of steps that were made.

    Raises:
        OutOfTime: the steps would not be made by then, or some of the figures would not.
    """
    device = next(model.parameters()).device
    learner = Learner(model, config, device, subject.loss)
    began = time.monotonic()
    for step in range(config.steps):
        learner.step(subject.batch(step), learning_rate(step, config))
        say(step + 1)
        now = time.monotonic()
        expected = now + (now - began) / (step + 1) * (config.steps - step - 1)
        if now > deadline or (step == 9 and expected > deadline):
            raise OutOfTime(
                f"its {config.steps} steps would take {expected - began:.0f} s, and "
                f"{max(0.0, deadline - began):.0f} s were left"
            )
    assert isinstance(learner.model, nn.Module)
    yield from subject.evaluate(model, deadline)
