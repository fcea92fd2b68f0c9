"""How a model is trained: everything that decides the numbers of a run, apart from its text."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from adder.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every training has; every value is checked on construction (UsageError).

    One step reads `accumulation` times `batch_size` rows and updates once.

    Args:
        warmup: steps over which the learning rate rises from 0 to `learning_rate`; a cosine then
            takes it down to `minimum_learning_rate` at `steps`.
        clip: the gradient norm above which gradients are scaled down; 0 for no clipping.
        precision: "float32", or "bfloat16" for autocast (parameters stay float32).
        validation: the fraction of the training data that is held out, never trained on.
        keep: how many checkpoints stay on disk.
    """

    steps: int = 2000
    batch_size: int = 12
    accumulation: int = 1
    learning_rate: float = 3e-3
    minimum_learning_rate: float = 3e-4
    warmup: int = 100
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    precision: str = "float32"
    seed: int = 0
    validation: float = 0.1
    evaluate_every: int = 250
    save_every: int = 250
    keep: int = 2

    _at_least_1: ClassVar[tuple[str, ...]] = (
        *("steps", "batch_size", "accumulation", "evaluate_every", "save_every", "keep"),
    )

    _later: ClassVar[frozenset[str]] = frozenset()  # came after the first runs, which lack them

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), type(field.default))
        for name in self._at_least_1:
            self._need(name, getattr(self, name) >= 1, "at least 1")
        self._need("learning_rate", self.learning_rate > 0, "above 0")
        low = self.minimum_learning_rate
        self._need("minimum_learning_rate", 0 <= low <= self.learning_rate, "in [0, learning_rate]")
        self._need("warmup", self.warmup >= 0, "at least 0")
        self._need("weight_decay", self.weight_decay >= 0, "at least 0")
        self._need("beta1", 0 <= self.beta1 < 1, "in [0, 1)")
        self._need("beta2", 0 <= self.beta2 < 1, "in [0, 1)")
        self._need("clip", self.clip >= 0, "at least 0")
        self._need("precision", self.precision in ("float32", "bfloat16"), "float32 or bfloat16")
        self._need("seed", 0 <= self.seed < 2**63, "in [0, 2^63)")
        self._need("validation", 0 <= self.validation < 1, "in [0, 1)")

    @property
    def rows(self) -> int:
        """Rows of one step."""
        return self.batch_size * self.accumulation

    @property
    def carries(self) -> bool:
        """Whether rows keep their state from step to step."""
        return False

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `to_dict` gave; UsageError names a key that is unknown or missing."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise UsageError(f"unknown training setting {unknown[0]}")
        if missing := sorted(known - values.keys() - cls._later):
            raise UsageError(f"the training setting {missing[0]} is missing")
        return cls(**values)

    def _need(self, name: str, holds: bool, condition: str) -> None:
        if not holds:
            raise UsageError(f"{name} must be {condition}, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Settings):
    """The settings of a language model's training.

    Args:
        length: tokens of a row in one step.
        carry_state: rows keep their state from step to step (truncated back-propagation through
            time) instead of starting anew at random places.
        validation: the fraction of the text, at its end, that is never trained on.
        evaluation_tokens: how many tokens of the validation part an evaluation reads.
        checkpoint_layers: keep only what enters each block for the backward pass and run the block again: less memory,
            a forward pass more, the same numbers.
    """

    length: int = 64
    carry_state: bool = True
    evaluation_tokens: int = 20_000
    checkpoint_layers: bool = False

    _at_least_1: ClassVar[tuple[str, ...]] = (*Settings._at_least_1, "length", "evaluation_tokens")
    _later: ClassVar[frozenset[str]] = frozenset({"checkpoint_layers"})

    @property
    def carries(self) -> bool:
        return self.carry_state

    @property
    def tokens_per_step(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(Settings):
    """The settings of a classifier's training; a row is a sequence.

    Args:
        buckets: batches that are drawn together and sorted by length, so that sequences of about one
            length meet and little is padded; 1 for none of that.
        validation: the fraction of the training sequences, drawn by the seed, that is never trained on.
        evaluation_sequences: how many of those an evaluation reads.
    """

    buckets: int = 1
    evaluation_sequences: int = 2000

    _at_least_1: ClassVar[tuple[str, ...]] = (
        *(*Settings._at_least_1, "buckets", "evaluation_sequences"),
    )


def _check_type(name: str, value: object, expected: type) -> None:
    if expected is float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not math.isfinite(value):  # type: ignore[arg-type]
            raise UsageError(f"{name} must be a finite number, got {value!r}")
    elif type(value) is not expected:
        words = {int: "a whole number", bool: "true or false", str: "a word"}
        raise UsageError(f"{name} must be {words[expected]}, got {value!r}")
