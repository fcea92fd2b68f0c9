"""What the configs of all models share: plain JSON values out, checked values in."""

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from adder.errors import UsageError

# More parameters than any machine holds: sizes beyond this are a slip of the keyboard.
MOST_PARAMETERS = 10**13
# What Hugging Face's Trainer writes into a config. Nothing in adder reads it, and it is not saved.
NOTES = ("use_cache", "bos_token_id", "eos_token_id", "pad_token_id")

_Class = TypeVar("_Class", bound=type)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ABC):
    """The sizes of a model, checked before any memory is taken.

    Attributes:
        kind: the word for this model in a config.json.
        title: the same in a sentence.
    """

    kind: ClassVar[str]
    title: ClassVar[str]

    @abstractmethod
    def parameter_count(self) -> int:
        """Return how many parameters the model has. No tensor is made."""

    def stored_count(self) -> int:
        """Return how many numbers a file of the model holds. No tensor is made."""
        return self.parameter_count()

    def check_parameter_count(self) -> None:
        """Raise UsageError where no machine could hold the model."""
        count = self.parameter_count()
        if count > MOST_PARAMETERS:
            raise UsageError(
                f"config: these sizes make {count:.1e} parameters, more than any machine holds"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the config that `to_dict` wrote.

        Raises:
            UsageError: a key is unknown or missing, or a value is not of its kind.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                raise UsageError(f"config: {name} is not a key of {cls.title}")
        for name, field in fields.items():
            if field.default is dataclasses.MISSING and name not in values:
                raise UsageError(f"config: {name} is missing")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def takes_notes(config_class: _Class) -> _Class:
    """Let a frozen dataclass take the attributes NOTES, which are none of its fields."""
    frozen: Any = config_class.__setattr__

    def set_attribute(self: object, name: str, value: object) -> None:
        (object.__setattr__ if name in NOTES else frozen)(self, name, value)

    setattr(config_class, "__setattr__", set_attribute)  # noqa: B010  # mypy takes no assignment
    return config_class


def check_flag(name: str, value: object) -> None:
    """Raise UsageError where a value is not true or false."""
    if not isinstance(value, bool):
        raise UsageError(f"config: {name} is {value!r}, expected true or false")


def check_number(name: str, value: object) -> None:
    """Raise UsageError where a value is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"config: {name} is {value!r}, expected a number")


def check_positive(name: str, value: object) -> None:
    """Raise UsageError where a value is no positive number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"config: {name} is {value!r}, expected a number")
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"config: {name} is {value!r}, expected a positive number")


def check_range(name: str, value: object, *, positive: bool) -> None:
    """Raise UsageError where a value is not (least, largest), in this order and not below zero."""
    pair = value if isinstance(value, tuple) else ()
    numbers = [
        each for each in pair if isinstance(each, int | float) and not isinstance(each, bool)
    ]
    if not len(pair) == len(numbers) == 2:
        raise UsageError(f"config: {name} is {value!r}, expected two numbers")
    low, high = numbers
    if not ((low > 0 if positive else low >= 0) and low <= high and low < math.inf):
        least = "above" if positive else "of at least"
        raise UsageError(
            f"config: {name} is {value!r}, expected numbers {least} 0, the least first"
        )


def check_count(name: str, value: object) -> None:
    """Raise UsageError where a value is no whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"config: {name} is {value!r}, expected a number")
    if not isinstance(value, int) or value < 1:
        raise UsageError(f"config: {name} is {value!r}, expected a whole number of at least 1")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise UsageError, with the choices, where a value is none of them."""
    if value not in choices:
        raise UsageError(f"config: {name} is {value!r}, expected one of {', '.join(choices)}")
