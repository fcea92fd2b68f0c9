"""What a run learns from, and how good it is at that: all that the training loop does not know."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn

from adder.training.learner import LossFunction, Step


class Task(ABC):
    """Text, or labelled sequences.

    Attributes:
        unit: what is counted: "tokens" or "sequences".
        loss_unit: in which unit a loss is.
        units_per_step: how many of them one update reads.
        longest: steps of its longest row.
        to_test: how many are in the official test part.
        loss: what a part of a step costs.
    """

    unit: ClassVar[str]
    loss_unit: ClassVar[str]
    units_per_step: int
    longest: int
    to_test: int = 0
    loss: LossFunction

    @abstractmethod
    def batch(self, step: int) -> Step:
        """What a step reads, counted from 0: a pure function of the seed and the step."""

    @property
    @abstractmethod
    def validates(self) -> bool:
        """Whether anything was held out."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """validation_loss and figures beside it, over what was held out."""

    def test(self, model: nn.Module, stopped: Callable[[], bool]) -> dict[str, Any]:  # noqa: ARG002
        """Figures over the official test part; nothing where there is none, or `stopped` says so."""
        return {}

    @abstractmethod
    def summary(self) -> str:
        """What is trained on, in a few words."""

    @abstractmethod
    def step_summary(self) -> str:
        """What one step reads, in a few words."""
