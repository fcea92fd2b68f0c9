"""What a comparison measures: models, lengths, tasks, and how much time it may take."""

from dataclasses import asdict, dataclass, field
from typing import Any

from adder.data.synthetic import Synthetic, make_synthetic
from adder.training.config import TrainingConfig
from adder.training.presets import find_synthetic_preset

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
        tokens: written after each context, at least.
        tasks: what is learned for quality.
        steps: of training, for each task.
        copying: length of a row of selective copying, and how many tokens of it are to be copied.
        scaled: the tasks are those of `adder train TASK`: rows of 256 tokens, and thousands of steps.
    """

    layers: tuple[str, ...] = LAYERS
    parts: tuple[str, ...] = PARTS
    tasks: tuple[str, ...] = TASKS
    seeds: tuple[int, ...] = (0,)
    device: str = "cpu"
    source: str | None = None
    seconds: float = 690.0
    limit: float = 8.0
    lengths: tuple[int, ...] = tuple(2**n for n in range(8, 17))
    contexts: tuple[int, ...] = tuple(2**n for n in range(6, 17))
    tokens: int = 50
    steps: dict[str, int] = field(
        default_factory=lambda: {"text": 500, "selective-copying": 2000, "induction-heads": 800}
    )
    copying: tuple[int, int] = (136, 8)
    scaled: bool = False

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
        "copying": (36, 4),
    }
    return Plan(**(short | changes))


def scaled_plan(**changes: Any) -> Plan:
    """The tasks as `adder train TASK` trains them: minutes for each model and task.

    On two quiet cores, selective copying took 3 (S4) to 3.8 (Mamba), induction heads 2.
    """
    steps = {task: 2000 if task == "text" else _preset(task)["steps"] for task in TASKS}
    long: dict[str, Any] = {"seconds": 7200.0, "scaled": True, "steps": steps}
    return Plan(**(long | changes))


def _preset(task: str) -> dict[str, Any]:
    return find_synthetic_preset(task, "scaled").training


def task_training(plan: Plan, task: str, seed: int) -> TrainingConfig:
    """How a model learns a task: the same for every model.

    The tasks are those of arXiv 2312.00752, smaller: selective copying of 8 tokens among 128 (there 16 among 4096; in a
    quick plan 4 among 32), induction heads trained at 64 tokens (there 256); with `scaled`, 16 among 256, and 256.
    """
    steps = plan.steps[task]
    common: dict[str, Any] = {"steps": steps, "seed": seed, "carry_state": False}
    if task != "text":
        common |= {"length": task_source(plan, task)[0].length, "validation": 0.0}
    if plan.scaled and task != "text":
        return TrainingConfig(**(_preset(task) | common))
    rows, rate, beta2 = {
        "text": (8, 3e-3, 0.95),
        "selective-copying": (32, 5e-3, 0.9),
        "induction-heads": (32, 4e-3, 0.95),
    }[task]
    if task == "text":
        common |= {"length": 256, "validation": 0.1}
    return TrainingConfig(
        batch_size=rows,
        learning_rate=rate,
        minimum_learning_rate=rate / 20,
        warmup=min(100, steps // 4),
        weight_decay=0.1 if task == "text" else 0.0,
        beta2=beta2,
        evaluation_tokens=50_000 if task == "text" else 20_000,
        **common,
    )


def task_source(plan: Plan, task: str) -> tuple[Synthetic, tuple[int, ...]]:
    """The source of a task, and the lengths it is evaluated at: as trained, and beyond."""
    if plan.scaled:
        source = make_synthetic(task, **find_synthetic_preset(task, "scaled").source)
        beyond = (1024, 4096, 16_384, 65_536) if task == "induction-heads" else ()
        return source, (source.length, *beyond)
    if task == "induction-heads":
        return make_synthetic(task, length=64, symbols=7), (64, 256, 1024)
    length, tokens = plan.copying
    return make_synthetic(task, length=length, tokens=tokens), (length,)
