"""What a comparison measures: models, lengths, tasks, and how much time it may take."""

from dataclasses import asdict, dataclass, field
from typing import Any

from adder.data.synthetic import Synthetic, make_synthetic
from adder.training.config import TrainingConfig

PARTS = ("training", "generation", "quality")
QUICK_LAYERS = ("mamba", "s4", "transformer", "lstm")
LAYERS = ("mamba", "mamba2", "s4", "transformer", "lstm")
TASKS = ("text", "selective-copying", "induction-heads")
SIZE = {"d_model": 64, "n_layer": 2}
VOCABULARY = 256
# Of the time that is left when a part begins, how much it may take.
SHARES = {"training": 0.25, "generation": 0.3, "quality": 1.0}


@dataclass(frozen=True)
class Plan:
    """Everything that decides what is measured.

    Args:
        seconds: that all of it may take; what does not fit is left out by name.
        limit: a training step on one length that takes longer is the last of its model.
        tokens: written after each context.
        steps: of training, for each task.
    """

    layers: tuple[str, ...] = LAYERS
    parts: tuple[str, ...] = PARTS
    seeds: tuple[int, ...] = (0,)
    device: str = "cpu"
    source: str | None = None
    seconds: float = 660.0
    limit: float = 8.0
    lengths: tuple[int, ...] = tuple(2**n for n in range(8, 17))
    contexts: tuple[int, ...] = tuple(2**n for n in range(6, 17))
    tokens: int = 50
    steps: dict[str, int] = field(
        default_factory=lambda: {"text": 500, "selective-copying": 1200, "induction-heads": 800}
    )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "size": SIZE, "vocabulary": VOCABULARY}


def quick_plan(**changes: Any) -> Plan:
    """Two minutes on two cores."""
    short: dict[str, Any] = {
        "layers": QUICK_LAYERS,
        "seconds": 110.0,
        "limit": 1.0,
        "lengths": tuple(2**n for n in range(8, 13)),
        "contexts": tuple(2**n for n in range(6, 14)),
        "tokens": 20,
        "steps": {"text": 60, "selective-copying": 500, "induction-heads": 400},
    }
    return Plan(**(short | changes))


def task_training(task: str, steps: int, seed: int) -> TrainingConfig:
    """How a model learns a task: the same for every model.

    The tasks are those of arXiv 2312.00752, far smaller: selective copying of 4 tokens among 32 (there 16 among
    4096), induction heads trained at 64 tokens (there 256).
    """
    length, rows, rate = {
        "text": (256, 8, 3e-3),
        "selective-copying": (36, 32, 5e-3),
        "induction-heads": (64, 32, 4e-3),
    }[task]
    return TrainingConfig(
        steps=steps,
        batch_size=rows,
        length=length,
        learning_rate=rate,
        minimum_learning_rate=rate / 20,
        warmup=min(100, steps // 4),
        weight_decay=0.1 if task == "text" else 0.0,
        seed=seed,
        carry_state=False,
        validation=0.1 if task == "text" else 0.0,
        evaluation_tokens=50_000 if task == "text" else 20_000,
    )


def task_source(task: str) -> tuple[Synthetic, tuple[int, ...]]:
    """The source of a task, and the lengths it is evaluated at: as trained, and beyond."""
    if task == "induction-heads":
        return make_synthetic(task, length=64, symbols=7), (64, 256, 1024)
    return make_synthetic(task, length=36, tokens=4, symbols=6), (36,)
