"""How much a model learns from a number of tokens: of text, and of tasks whose answers are known."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from adder.data import Bytes, RandomWindows, split_by_position
from adder.data.windows import Window
from adder.layers.state import State
from adder.models import LanguageModel
from adder.training.config import TrainingConfig
from adder.training.evaluation import evaluate_text
from adder.training.learner import Learner, Loss
from adder.training.schedule import learning_rate

NOT_ASKED = -100
_HELD_OUT = 2**32  # added to the seed: what is asked at the end was never learned from


class Synthetic(Protocol):
    """What `adder.data.synthetic.make_synthetic` returns."""

    @property
    def vocab_size(self) -> int: ...

    def batch(
        self, rows: int, seed: int, step: int, length: int | None = None
    ) -> tuple[Tensor, Tensor]: ...


class Task(Protocol):
    """What is learned, and how well it was."""

    unit: str
    vocab_size: int

    def window(self, step: int) -> Window: ...

    def evaluate(self, model: LanguageModel) -> float: ...


class TextTask:
    """The next byte of a text; bits per byte on its last tenth, read in windows of `length`."""

    unit = "bits per byte"
    vocab_size = 256

    def __init__(self, text: str, config: TrainingConfig):
        first, second = split_by_position(text, config.validation)
        self.windows = RandomWindows(Bytes().encode(first), config.rows, config.length, config.seed)
        self.ids = Bytes().encode(second)[: config.evaluation_tokens + 1]
        self.length = config.length

    def window(self, step: int) -> Window:
        return self.windows.window(step)

    def evaluate(self, model: LanguageModel) -> float:
        rows = max(1, min(16, (self.ids.size - 1) // self.length))
        found = evaluate_text(model, self.ids, length=self.length, rows=rows)
        return found.bits_per(found.tokens)


class SyntheticTask:
    """The share of asked positions that are right, on rows that were not learned from."""

    unit = "share right"

    def __init__(self, source: Synthetic, config: TrainingConfig):
        self.source, self.config = source, config
        self.vocab_size = source.vocab_size

    def window(self, step: int) -> Window:
        return Window(*self.source.batch(self.config.rows, self.config.seed, step), True)

    @torch.no_grad()
    def evaluate(self, model: LanguageModel) -> float:
        device = next(model.parameters()).device
        model.eval()
        right = asked = 0
        for step in range(4):
            ids, targets = self.source.batch(32, self.config.seed + _HELD_OUT, step)
            said = model(ids.to(device)).logits.argmax(-1).cpu()
            wanted = targets != NOT_ASKED
            right += int((said[wanted] == targets[wanted]).sum())
            asked += int(wanted.sum())
        return right / asked


def make_synthetic(name: str, **options: Any) -> Synthetic:
    """Return a task of `adder.data.synthetic`."""
    made: Synthetic = importlib.import_module("adder.data.synthetic").make_synthetic(
        name, **options
    )
    return made


def _loss(run: Callable[..., Any], part: tuple[Tensor, ...], state: State | None) -> Loss:
    inputs, targets = part
    output = run(inputs, state=state)
    logits = output.logits.flatten(0, 1).float()
    return Loss(F.cross_entropy(logits, targets.flatten(), ignore_index=NOT_ASKED), None, {})


@dataclass
class Trained:
    """value in the task's unit after `tokens`; None where the time was up before all steps were made."""

    value: float | None
    steps: int
    tokens: int


def step_seconds(model: LanguageModel, task: Task, config: TrainingConfig) -> float:
    """Return the time of an update, the faster of two after a first. The model has learned from them: use another."""
    learner = Learner(model, config, next(model.parameters()).device, _loss)
    times = []
    for step in range(3):
        start = time.perf_counter()
        learner.step(task.window(step), config.learning_rate)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def train(model: LanguageModel, task: Task, config: TrainingConfig, *, deadline: float) -> Trained:
    """Train for config.steps and evaluate; give up at the deadline (of time.monotonic)."""
    learner = Learner(model, config, next(model.parameters()).device, _loss)
    for step in range(config.steps):
        if time.monotonic() > deadline:
            return Trained(None, step, step * config.tokens_per_step)
        learner.step(task.window(step), learning_rate(step, config))
    return Trained(task.evaluate(model), config.steps, config.steps * config.tokens_per_step)
