"""What a training shows while it runs: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

LINE_EVERY_SECONDS = 5.0


class Moment(Protocol):
    """What a display shows: how many steps are done, and words (`str`)."""

    @property
    def step(self) -> int: ...


@dataclass(frozen=True)
class Report:
    """The figures of a moment; `per_second` is of the last steps and counts `unit`, `seconds_left` is a guess.

    Where there are right answers, `accuracy` is over the last steps.
    """

    step: int
    loss: float
    per_second: float
    seconds_left: float
    validation_loss: float | None = None
    accuracy: float | None = None
    validation_accuracy: float | None = None
    unit: str = "tokens"

    def __str__(self) -> str:
        if self.accuracy is not None:
            return self._with_answers(self.accuracy)
        validation = "" if self.validation_loss is None else f", valid {self.validation_loss:.3f}"
        return f"loss {self.loss:.3f}{validation}, {self._speed()}, {_duration(self.seconds_left)} left"

    def _speed(self) -> str:
        return f"{self.per_second:,.0f} {'seq' if self.unit == 'sequences' else self.unit}/s"

    def _with_answers(self, accuracy: float) -> str:
        validation = ""
        if self.validation_accuracy is not None:
            validation = f", valid {self.validation_accuracy:.1%}"
        return (
            f"loss {self.loss:.3f}, right {accuracy:.1%}{validation}, "
            f"{self._speed()}, {_duration(self.seconds_left)} left"
        )


class Display(ABC):
    """Shows reports on standard error."""

    @abstractmethod
    def update(self, report: Moment) -> None: ...

    @abstractmethod
    def say(self, message: str) -> None:
        """Show one line that stays."""

    @abstractmethod
    def close(self) -> None:
        """Leave the terminal as it was."""


class Bar(Display):
    """A progress bar with loss, tokens per second and the time left."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.fields[report]}"),
            console=console or Console(stderr=True),
            transient=False,
        )
        self._task = self._progress.add_task("training", total=steps, report="")
        self._progress.start()

    def update(self, report: Moment) -> None:
        self._progress.update(self._task, completed=report.step, report=str(report))

    def say(self, message: str) -> None:
        self._progress.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


class Lines(Display):
    """A plain line every few seconds, for logs and pipes."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._next = time.monotonic() + LINE_EVERY_SECONDS

    def update(self, report: Moment) -> None:
        if time.monotonic() >= self._next or report.step == self._steps:
            self._next = time.monotonic() + LINE_EVERY_SECONDS
            self.say(f"step {report.step}/{self._steps}: {report}")

    def say(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class Silent(Display):
    """Shows nothing: for scripts and tests."""

    def update(self, report: Moment) -> None:
        pass

    def say(self, message: str) -> None:
        pass

    def close(self) -> None:
        pass


def make_display(steps: int) -> Display:
    """A bar where standard error is a terminal that can move its cursor, lines elsewhere."""
    if sys.stderr is None:  # where the shell closed it: adder train ... 2>&-
        return Silent()
    console = Console(stderr=True)
    bar = sys.stderr.isatty() and not console.is_dumb_terminal
    return Bar(steps, console) if bar else Lines(steps)


class Rate:
    """Tokens per second over the last steps, evaluations and saving left out."""

    def __init__(self, steps: int = 50) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=steps)

    def add(self, tokens: int, seconds: float) -> float:
        """Count one step; return the rate."""
        self._steps.append((tokens, seconds))
        total = sum(seconds for _, seconds in self._steps)
        return sum(tokens for tokens, _ in self._steps) / max(total, 1e-9)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
