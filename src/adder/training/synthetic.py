"""Sequences with known answers as a task: what is asked costs, and an answer is right or wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adder.data.synthetic import NOT_ASKED, Synthetic, make_synthetic
from adder.data.windows import Window
from adder.errors import DamagedFile, UsageError
from adder.layers.state import State
from adder.models.language_model import LanguageModel
from adder.training.config import TrainingConfig
from adder.training.learner import Loss
from adder.training.task import Task

HELD_OUT = 2**40  # the steps from here on are drawn for evaluations alone
_AT_ONCE = 16_384  # tokens that an evaluation reads at once


@dataclass(frozen=True)
class Answers:
    """How many answers were asked for, how many were right, and what all of them cost, in nats."""

    asked: int
    right: int
    nats: float

    @property
    def accuracy(self) -> float:
        return self.right / self.asked

    @property
    def loss(self) -> float:
        """Nats per answer."""
        return self.nats / self.asked


class SyntheticTask(Task):
    """The answers of a source. A row is read from no state, and no row is ever read twice."""

    unit = "tokens"
    loss_unit = "nats per answer"

    def __init__(self, source: Synthetic, training: TrainingConfig) -> None:
        self.source, self.training = source, training
        self.units_per_step, self.longest = training.tokens_per_step, training.length
        self.loss = answer_loss

    def batch(self, step: int) -> Window:
        ids, targets = self.source.batch(
            self.training.rows, self.training.seed, step, self.training.length
        )
        return Window(ids, targets, True)

    @property
    def validates(self) -> bool:
        return True

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        assert isinstance(model, LanguageModel)
        length = self.training.length
        rows = max(1, self.training.evaluation_tokens // length)
        found = answer(model, self.source, rows, length, self.training.seed)
        return {
            "validation_loss": found.loss,
            "validation_accuracy": found.accuracy,
            "tokens_evaluated": rows * length,
        }

    def summary(self) -> str:
        return f"{self.source.vocab_size} symbols, drawn from seed {self.training.seed}"

    def step_summary(self) -> str:
        return f"{self.training.rows} x {self.training.length} tokens"


def answer_loss(run: Callable[..., Any], part: tuple[Tensor, ...], state: State | None) -> Loss:
    """Nats per answer of (ids, targets), and the share of answers that are right."""
    ids, targets = part
    asked = targets != NOT_ASKED
    logits, wanted = run(ids, state=state).logits[asked].float(), targets[asked]
    right = (logits.argmax(-1) == wanted).float().mean()
    return Loss(F.cross_entropy(logits, wanted), None, {"accuracy": right})


@torch.no_grad()
def answer(
    model: LanguageModel,
    source: Synthetic,
    rows: int,
    length: int | None = None,
    seed: int = 0,
    piece: int = _AT_ONCE,
) -> Answers:
    """Ask a model `rows` rows that no training saw.

    A row that is longer than `piece` is read piece by piece, its state carried on: memory does not grow with the
    length. A Transformer, whose state holds all it has read, reads it whole.

    Args:
        length: tokens of a row; the source's own where none is given. It may be longer than in training.
    """
    length = source.length if length is None else length
    if rows < 1 or piece < 1:
        raise UsageError(f"answer: rows is {rows} and piece {piece}, expected at least 1 each")
    device, training = next(model.parameters()).device, model.training
    model.eval()
    piece = length if model.config.layer == "transformer" else min(piece, length)
    at_once, asked, right, nats = max(1, _AT_ONCE // piece), 0, 0, 0.0
    for first in range(0, rows, at_once):
        here = min(at_once, rows - first)
        ids, targets = source.batch(here, seed, HELD_OUT + first, length)
        state = model.initial_state(here) if piece < length else None
        for start in range(0, length, piece):
            window = slice(start, start + piece)
            output = model(ids[:, window].to(device), state=state)
            state = output.state
            where = targets[:, window] != NOT_ASKED
            if not where.any():
                continue
            logits = output.logits[where.to(device)].double().cpu()
            wanted = targets[:, window][where]
            asked += wanted.numel()
            right += int((logits.argmax(-1) == wanted).sum())
            nats += F.cross_entropy(logits, wanted, reduction="sum").item()
    model.train(training)
    return Answers(asked, right, nats)


def synthetic_record(source: Synthetic) -> dict[str, Any]:
    """What config.json says of a source."""
    return {"name": source.name, "synthetic": source.to_dict()}


def run_synthetic(record: dict[str, Any], path: object) -> Synthetic | None:
    """The source that a run's config.json names; None where it is a text.

    Raises:
        DamagedFile: it cannot be read; `path` is the run's.
    """
    if "synthetic" not in record:
        return None
    try:
        options = dict(record["synthetic"])
        return make_synthetic(str(options.pop("name")), **options)
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise DamagedFile(f"the task of the run {path} cannot be read: {error}") from None
