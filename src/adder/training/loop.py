"""The training loop: steps, evaluations and checkpoints, until the end or a reason to stop."""

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from adder.errors import AdderError
from adder.training.checkpoint import list_checkpoints, prune_checkpoints
from adder.training.evaluation import evaluate_text
from adder.training.events import EventsFile
from adder.training.files import shell_word
from adder.training.learner import NotFinite
from adder.training.memory import memory_errors
from adder.training.metrics import MetricsFile
from adder.training.plot import plot_loss
from adder.training.progress import Display, Rate, Report
from adder.training.schedule import learning_rate
from adder.training.session import Session
from adder.training.signals import StopRequest

FINISHED = "finished"
TIME_LIMIT = "time limit"
_TOKENS_PER_ROW = 2048
_MOST_ROWS = 16
_WINDOW = 512


@dataclass(frozen=True)
class Outcome:
    """How a training ended: "finished", "time limit", "interrupted" or "terminated"."""

    reason: str
    step: int
    loss: float
    validation_loss: float | None
    validation_bits_per_byte: float | None
    tokens_evaluated: int
    seconds: float
    tokens_per_second: float


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
        session, config = self.session, self.session.training
        reason = FINISHED
        speed = 0.0
        while session.step < config.steps:
            started = time.monotonic()
            values = self._step()
            speed = self.rate.add(config.tokens_per_step, time.monotonic() - started)
            values["tokens_per_second"] = round(speed, 1)
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
        return self._outcome(reason, speed)

    def _step(self) -> dict[str, Any]:
        session, config = self.session, self.session.training
        rate = learning_rate(session.step, config)
        loss, norm = session.learner.step(session.windows.window(session.step), rate)
        session.step += 1
        return {
            "step": session.step,
            "loss": loss,
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens": session.step * config.tokens_per_step,
        }

    def _evaluate(self) -> dict[str, Any]:
        session = self.session
        if session.validation_ids.size < 2:
            return {}
        session.learner.check_weights()
        ids = session.validation_ids[: session.training.evaluation_tokens + 1]
        rows = min(_MOST_ROWS, max(1, (ids.size - 1) // _TOKENS_PER_ROW))
        result = evaluate_text(session.learner.model, ids, length=_WINDOW, rows=rows)
        if not math.isfinite(result.loss):
            raise NotFinite(f"the validation loss is {result.loss}")
        bytes_per_token = session.validation_bytes / session.validation_ids.size
        return {
            "validation_loss": result.loss,
            "validation_bits_per_byte": result.bits_per(result.tokens * bytes_per_token),
            "tokens_evaluated": result.tokens,
        }

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
        plot_loss(self.session.path, self.metrics.lines)

    def _show(self, values: dict[str, Any], speed: float) -> None:
        config = self.session.training
        left = (config.steps - self.session.step) * config.tokens_per_step / speed
        if self.time_limit is not None:
            left = min(left, max(0.0, self.began + self.time_limit - time.monotonic()))
        last = self._last_evaluated()
        self.display.update(
            Report(self.session.step, values["loss"], speed, left, last.get("validation_loss"))
        )

    def _last_evaluated(self) -> dict[str, Any]:
        every = self.session.training.evaluate_every
        recent = self.metrics.lines[-every:]
        return next((line for line in reversed(recent) if "validation_loss" in line), {})

    def _time_is_over(self) -> bool:
        return self.time_limit is not None and time.monotonic() - self.began >= self.time_limit

    def _outcome(self, reason: str, speed: float) -> Outcome:
        lines = self.metrics.lines
        evaluated: dict[str, Any] = next(
            (line for line in reversed(lines) if "validation_loss" in line), {}
        )
        return Outcome(
            reason,
            self.session.step,
            lines[-1]["loss"] if lines else float("nan"),
            evaluated.get("validation_loss"),
            evaluated.get("validation_bits_per_byte"),
            evaluated.get("tokens_evaluated", 0),
            time.monotonic() - self.began,
            speed,
        )


def _last_name(session: Session) -> str:
    names = [folder.name for folder in list_checkpoints(session.path)]
    return names[-1] if names else "none"
