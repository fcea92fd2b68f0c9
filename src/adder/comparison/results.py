"""What was measured, and the exponents that are worked out from it."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]


@dataclass
class Results:
    """All figures of a comparison so far: rows of plain values."""

    settings: Row
    machine: str = ""
    models: list[Row] = field(default_factory=list)
    training: list[Row] = field(default_factory=list)
    generation: list[Row] = field(default_factory=list)
    quality: list[Row] = field(default_factory=list)
    left_out: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    complete: bool = False

    @property
    def layers(self) -> list[str]:
        return [row["layer"] for row in self.models]

    def leave_out(self, part: str, layer: str, why: str) -> None:
        """Say that there is no figure, and why."""
        self.left_out.append({"part": part, "layer": layer, "why": why})

    def exponents(self) -> list[Row]:
        """p of time ~ length^p for each model, measured and in theory; None where there are too few lengths."""
        rows = []
        for layer in self.layers:
            train = [(r["length"], r["seconds"]) for r in self.training if r["layer"] == layer]
            token = [(r["context"], r["seconds"]) for r in self.generation if r["layer"] == layer]
            attends = layer == "transformer"
            rows.append(
                {
                    "layer": layer,
                    "training": exponent(*_columns(train)),
                    "training_theory": 2 if attends else 1,
                    "token": exponent(*_columns(token)),
                    "token_theory": 1 if attends else 0,
                }
            )
        return rows

    def quality_of(self, layer: str, task: str, unit: str) -> list[float]:
        """The values of all seeds."""
        return [
            row["value"]
            for row in self.quality
            if (row["layer"], row["task"], row["unit"]) == (layer, task, unit)
        ]

    def asked(self, task: str, unit: str) -> int:
        """How many answers were asked of each model for a figure of quality, in one training."""
        here = [row for row in self.quality if (row["task"], row["unit"]) == (task, unit)]
        return max(int(row["asked"]) for row in here)

    def questions(self) -> list[tuple[str, str]]:
        """(task, unit) of every figure of quality, in the order they were measured."""
        return list(dict.fromkeys((row["task"], row["unit"]) for row in self.quality))

    def to_dict(self) -> Row:
        """Return everything for a JSON file."""
        return {
            "comparison": "adder compare",
            "format": 1,
            "complete": self.complete,
            "seconds": round(self.seconds, 1),
            "machine": self.machine,
            "settings": self.settings,
            "models": self.models,
            "training": self.training,
            "generation": self.generation,
            "quality": self.quality,
            "exponents": self.exponents(),
            "left_out": self.left_out,
        }


def exponent(lengths: Sequence[float], times: Sequence[float]) -> float | None:
    """Return p of times ~ c lengths^p: least squares in log-log over the upper half of the lengths, two at least.

    None where there are fewer than two lengths.
    """
    pairs = sorted(zip(lengths, times, strict=True))
    if len(pairs) < 2:
        return None
    upper = pairs[min(len(pairs) // 2, len(pairs) - 2) :]
    x = [math.log(length) for length, _ in upper]
    y = [math.log(time) for _, time in upper]
    return statistics.linear_regression(x, y).slope


def _columns(pairs: list[tuple[int, float]]) -> tuple[list[float], list[float]]:
    return [float(length) for length, _ in pairs], [time for _, time in pairs]
