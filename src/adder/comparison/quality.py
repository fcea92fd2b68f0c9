"""How much a model learns from a number of tokens: of text, and of tasks whose answers are known."""

import time
from collections.abc import Callable
from typing import Any, Protocol

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

_LONG = 4096  # rows that are longer are few


class OutOfTime(Exception):
    """What is left to do does not fit; the message says what, and why."""


class Subject(Protocol):
    """What is learned, and figures of how well it was: unit -> value."""

    vocab_size: int

    @property
    def loss(self) -> LossFunction: ...

    def batch(self, step: int) -> Window: ...

    def evaluate(self, model: LanguageModel) -> dict[str, float]: ...


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

    def evaluate(self, model: LanguageModel) -> dict[str, float]:
        rows = max(1, (self.ids.size - 1) // self.length)
        found = evaluate_text(model, self.ids, length=self.length, rows=rows)
        return {"bits per byte": found.bits_per(found.tokens)}


class Answering:
    """The share of answers that are right, on rows that no training saw, at each of some lengths."""

    def __init__(self, source: Synthetic, config: TrainingConfig, lengths: tuple[int, ...]):
        self.task, self.lengths = SyntheticTask(source, config), lengths
        self.loss, self.batch = self.task.loss, self.task.batch
        self.vocab_size = source.vocab_size

    def evaluate(self, model: LanguageModel) -> dict[str, float]:
        config, found = self.task.training, {}
        for length in self.lengths:
            rows = max(16 if length <= _LONG else 4, config.evaluation_tokens // length)
            right = answer(model, self.task.source, rows, length, config.seed)
            found[f"right at {length}"] = right.accuracy
        return found


def train(
    model: LanguageModel,
    subject: Subject,
    config: TrainingConfig,
    *,
    deadline: float,
    say: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Train for config.steps and return the figures of `subject`.

    Args:
        deadline: of time.monotonic. Whether the steps fit is judged from the first ten.
        say: told the number of steps that were made.

    Raises:
        OutOfTime: the steps would not be made by then.
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
    return subject.evaluate(model)
