"""The training loop: steps, evaluations and checkpoints, until the end or a reason to stop."""

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from adder.errors import AdderError
from adder.files import shell_word
from adder.training.checkpoint import list_checkpoints, prune_checkpoints
from adder.training.events import EventsFile
from adder.training.learner import NotFinite
from adder.training.memory import memory_errors
from adder.training.metrics import MetricsFile
from adder.training.plot import plot_loss
from adder.training.progress import Display, Rate, Report
from adder.training.schedule import learning_rate
from adder.training.session import Session
from adder.training.signals import INTERRUPTED, TERMINATED, StopRequest

FINISHED = "finished"
TIME_LIMIT = "time limit"
_RECENT = 50


@dataclass(frozen=True)
class Outcome:
    """How a training ended: "finished", "time limit", "interrupted" or "terminated".

    Args:
        figures: of the last evaluation, and of the test at the end where there was one.
        seconds: of the training, without the test.
        unit: what `units_per_second` counts.
    """

    reason: str
    step: int
    loss: float
    figures: dict[str, Any]
    seconds: float
    unit: str
    units_per_second: float

    @property
    def validation_loss(self) -> float | None:
        return self.figures.get("validation_loss")

    @property
    def validation_bits_per_byte(self) -> float | None:
        return self.figures.get("validation_bits_per_byte")

    @property
    def tokens_evaluated(self) -> int:
        return int(self.figures.get("tokens_evaluated", 0))

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values, under the names of metrics.jsonl."""
        return {
            "reason": self.reason,
            "step": self.step,
            "loss": self.loss,
            **self.figures,
            "seconds": self.seconds,
            f"{self.unit}_per_second": self.units_per_second,
        }


def fit(session: Session, display: Display, time_limit: float | None = None) -> Outcome:
    """Train a session until its last step, the time limit, Ctrl-C or SIGTERM; save on the way.

    Args:
        time_limit: seconds after which the running step is the last.

    Raises:
        AdderError: the loss is no longer finite, or the disk refuses a file. The last checkpoint
            stays as it was.
    """
    try:
        with ExitStack() as stack, memory_errors():
            stop = stack.enter_context(StopRequest())
            stack.callback(display.close)
            return _Fit(session, display, time_limit, stop, stack).run()
    except NotFinite as error:
        rate = session.training.learning_rate / 3
        raise AdderError(
            f"training stopped after step {session.step}: {error}; nothing was saved over the last "
            f"good checkpoint, {_last_name(session)}. Continue at a lower rate: "
            f"adder train --resume {shell_word(session.path)} --learning-rate {rate:g}"
        ) from None
    except BrokenPipeError:
        raise  # whoever read the progress is gone; the disk is not at fault
    except OSError as error:
        raise AdderError(
            f"cannot write to the run {session.path}: {error.strerror or error}; "
            f"its last good checkpoint is {_last_name(session)}"
        ) from error


class _Fit:
    def __init__(
        self,
        session: Session,
        display: Display,
        time_limit: float | None,
        stop: StopRequest,
        stack: ExitStack,
    ) -> None:
        self.session = session
        self.display = display
        self.time_limit = time_limit
        self.stop = stop
        self.metrics = stack.enter_context(MetricsFile(session.path, session.step))
        self.events = EventsFile(session.path, session.step)
        stack.callback(self.events.close)
        self.rate = Rate()
        self.began = time.monotonic()
        self.saved_step = session.step

    def run(self) -> Outcome:
        session, config, task = self.session, self.session.training, self.session.task
        reason = FINISHED
        speed = 0.0
        while session.step < config.steps:
            started = time.monotonic()
            values = self._step()
            speed = self.rate.add(task.units_per_step, time.monotonic() - started)
            values[f"{task.unit}_per_second"] = round(speed, 1)
            if session.step % config.evaluate_every == 0 or session.step == config.steps:
                values |= self._evaluate()
            self._record(values)
            self._show(values, speed)
            if session.step % config.save_every == 0 or session.step == config.steps:
                self._save()
            if self.stop.reason is not None:
                reason = self.stop.reason
                break
            if session.step < config.steps and self._time_is_over():
                reason = TIME_LIMIT
                break
        if self.saved_step != session.step:
            self._save()
        seconds = time.monotonic() - self.began
        tested = {} if reason in (INTERRUPTED, TERMINATED) else self._test()
        return self._outcome(reason, seconds, speed, tested)

    def _step(self) -> dict[str, Any]:
        session, config = self.session, self.session.training
        rate = learning_rate(session.step, config)
        update = session.learner.step(session.task.batch(session.step), rate)
        session.step += 1
        return {
            "step": session.step,
            "loss": update.pop("loss"),
            "learning_rate": rate,
            "gradient_norm": update.pop("gradient_norm"),
            session.task.unit: session.step * session.task.units_per_step,
            **update,
        }

    def _evaluate(self) -> dict[str, Any]:
        session = self.session
        if not session.task.validates:
            return {}
        session.learner.check_weights()
        figures = session.task.evaluate(session.learner.model)
        if not math.isfinite(figures["validation_loss"]):
            raise NotFinite(f"the validation loss is {figures['validation_loss']}")
        return figures

    def _test(self) -> dict[str, Any]:
        if count := self.session.task.to_test:
            self.display.say(f"saved; testing on {count:,} {self.session.task.unit}")
        return self.session.task.test(
            self.session.learner.model, lambda: self.stop.reason is not None
        )

    def _record(self, values: dict[str, Any]) -> None:
        self.metrics.append(values)
        scalars = {name: float(value) for name, value in values.items() if name != "step"}
        self.events.append(values["step"], scalars)

    def _save(self) -> None:
        self.session.learner.check_weights()
        # The metrics first: a checkpoint on the disk has every line up to its step there too.
        self.metrics.flush_to_disk()
        self.events.flush()
        self.session.save()
        self.saved_step = self.session.step
        prune_checkpoints(self.session.path, self.session.training.keep)
        plot_loss(self.session.path, self.metrics.lines, self.session.task.loss_unit)

    def _show(self, values: dict[str, Any], speed: float) -> None:
        config, task = self.session.training, self.session.task
        left = (config.steps - self.session.step) * task.units_per_step / speed
        if self.time_limit is not None:
            left = min(left, max(0.0, self.began + self.time_limit - time.monotonic()))
        last = self._last_evaluated()
        recent = [line["accuracy"] for line in self.metrics.lines[-_RECENT:] if "accuracy" in line]
        self.display.update(
            Report(
                self.session.step,
                values["loss"],
                speed,
                left,
                last.get("validation_loss"),
                sum(recent) / len(recent) if recent else None,
                last.get("validation_accuracy"),
                task.unit,
            )
        )

    def _last_evaluated(self) -> dict[str, Any]:
        every = self.session.training.evaluate_every
        recent = self.metrics.lines[-every:]
        return next((line for line in reversed(recent) if "validation_loss" in line), {})

    def _time_is_over(self) -> bool:
        return self.time_limit is not None and time.monotonic() - self.began >= self.time_limit

    def _outcome(
        self, reason: str, seconds: float, speed: float, tested: dict[str, Any]
    ) -> Outcome:
        lines = self.metrics.lines
        evaluated: dict[str, Any] = next(
            (line for line in reversed(lines) if "validation_loss" in line), {}
        )
        names = ("validation_", f"{self.session.task.unit}_evaluated")
        return Outcome(
            reason,
            self.session.step,
            lines[-1]["loss"] if lines else float("nan"),
            {k: v for k, v in evaluated.items() if k.startswith(names)} | tested,
            seconds,
            self.session.task.unit,
            speed,
        )


def _last_name(session: Session) -> str:
    names = [folder.name for folder in list_checkpoints(session.path)]
    return names[-1] if names else "none"
