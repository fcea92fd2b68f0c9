"""What `adder train` says at its beginning and at its end."""

import json
from typing import TYPE_CHECKING, Any

from adder.files import shell_word

if TYPE_CHECKING:
    from adder.training.loop import Outcome
    from adder.training.session import Session


def opening(session: "Session") -> str:
    """One line: what is trained on what."""
    config, training = session.config, session.training
    start = f"resuming {session.path} at step {session.step}" if session.step else "training"
    return (
        f"{start}: {config.model.parameter_count():,} parameters on {config.source['name']} "
        f"({session.task.summary()}), {training.precision} on {session.learner.device}, "
        f"{training.steps} steps of {session.task.step_summary()}; in {session.path}"
    )


def report(session: "Session", outcome: "Outcome", as_json: bool) -> None:
    """Print how the training ended, and what can be done with the run."""
    path = shell_word(session.path)
    resume = f"adder train --resume {path}"
    if as_json:
        values = {"run": str(session.path), **outcome.to_dict()}
        values["steps"] = session.training.steps
        values["parameters"] = session.config.model.parameter_count()
        values["precision"] = session.training.precision
        values["resume"] = None if outcome.reason == "finished" else resume
        print(json.dumps(values))
        return
    print(
        f"{outcome.reason} at step {outcome.step} after {outcome.seconds:.0f} s: "
        f"loss {outcome.loss:.4f}{_validation(outcome.figures)}"
    )
    if "test_accuracy" in outcome.figures:
        print(
            f"test accuracy {outcome.figures['test_accuracy']:.2%} "
            f"over {outcome.figures['sequences_tested']:,} sequences never trained on "
            f"(loss {outcome.figures['test_loss']:.4f})"
        )
    if outcome.reason != "finished":
        print(f"saved; continue with: {resume}")
    elif "synthetic" in session.config.source:
        print(f"the run is in {session.path}; at other lengths: adder evaluate {path} --length N")
    elif session.config.task == "text":
        print(f"the run is in {session.path}; let it write: adder generate {path} PROMPT")
    else:
        model = session.config.model.to_dict()
        recurs = not model["bidirectional"] and model["method"] != "dss"
        more = (
            f"both views: adder evaluate {path} --view both" if recurs else f"adder evaluate {path}"
        )
        print(f"the run is in {session.path}; {more}")


def _evaluated(figures: dict[str, Any]) -> str:
    unit = "sequences" if "sequences_evaluated" in figures else "tokens"
    return f"{figures[f'{unit}_evaluated']:,} {unit}"


def _validation(figures: dict[str, Any]) -> str:
    if "validation_bits_per_byte" in figures:
        return (
            f", validation loss {figures['validation_loss']:.4f} nats per token, "
            f"{figures['validation_bits_per_byte']:.4f} bits per byte "
            f"over {figures['tokens_evaluated']:,} tokens"
        )
    if "validation_accuracy" in figures:
        return (
            f", validation loss {figures['validation_loss']:.4f}, "
            f"accuracy {figures['validation_accuracy']:.2%} "
            f"over {_evaluated(figures)} held out"
        )
    return ""
