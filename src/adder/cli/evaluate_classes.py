"""`adder evaluate` for a classifier: both views of one model, and what they differ by."""

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from adder.errors import UsageError

if TYPE_CHECKING:
    import torch

    from adder.training.class_evaluation import Comparison, Reading
    from adder.training.opened import Opened

_TOLD_EVERY_SECONDS = 5.0
VIEWS = ("convolution", "recurrence", "both")
CHUNK = 64  # steps at a time: a recurrence, and many times faster than one by one


def evaluate_classifier(
    opened: "Opened",
    source: str | None,
    given: dict[str, Any],
    target: "torch.device",
    as_json: bool,
) -> None:
    """Print accuracy and loss over a source; `given` holds the options that were."""
    import numpy as np

    from adder.training.class_evaluation import compare_views, read_classes
    from adder.training.opened import choose_rate, evaluation_data

    view = given.get("view", "convolution")
    if view not in VIEWS:
        raise UsageError(f"no view {view}: choose {', '.join(VIEWS[:-1])} or {VIEWS[-1]}")
    if "chunk" in given and view == "convolution":
        raise UsageError(
            "--chunk is for --view recurrence or both: a convolution reads all at once"
        )
    model = opened.classifier().to(target)
    if view != "convolution":
        model.initial_state(1)  # a bidirectional model refuses here, before anything is read
    options: dict[str, Any] = {k: given[k] for k in ("test_files", "mix") if k in given}
    part = evaluation_data(opened, model.config, source, options)
    rate = choose_rate(given.get("rate"), model.config.sampling_rate, part.sampling_rate, part.name)
    indices = part.indices
    if (most := given.get("sequences", len(indices))) < len(indices):
        indices = indices[np.arange(most) * len(indices) // most]
    chunk = given.get("chunk", CHUNK)
    told = _Told()
    facts: dict[str, Any] = {
        "run": str(opened.path),
        "step": opened.step,
        "source": part.name,
        "sequences": len(indices),
        "rate": rate,
    }
    if view == "both":
        compared = compare_views(model, part.data, indices, chunk=chunk, rate=rate, progress=told)
        if as_json:
            print(json.dumps({**facts, **_comparison(compared, chunk)}))
        else:
            _print_comparison(compared, chunk, part.name)
        return
    steps = None if view == "convolution" else chunk
    result = read_classes(model, part.data, indices, chunk=steps, rate=rate, progress=told)
    if as_json:
        print(json.dumps({**facts, "view": view, **_figures(result)}))
        return
    how = "" if view == "convolution" else f", {_steps(chunk)} at a time"
    print(
        f"{result.accuracy:.2%} right (loss {result.loss:.4f}) over {result.count:,} sequences "
        f"of {part.name}, read as a {view}{how}"
    )


class _Told:
    """Says on standard error how far a long reading is, now and then."""

    def __init__(self) -> None:
        self.next = time.monotonic() + _TOLD_EVERY_SECONDS

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self.next and sys.stderr is not None:
            self.next = time.monotonic() + _TOLD_EVERY_SECONDS
            print(f"read {done / total:.0%} of all steps", file=sys.stderr, flush=True)


def _figures(result: "Reading") -> dict[str, Any]:
    return {"accuracy": result.accuracy, "right": result.right, "loss": result.loss}


def _comparison(compared: "Comparison", chunk: int) -> dict[str, Any]:
    return {
        "view": "both",
        "chunk": chunk,
        "convolution": _figures(compared.convolution),
        "recurrence": _figures(compared.recurrence),
        "predictions_that_differ": compared.predictions_that_differ,
        "largest_difference": compared.largest_difference,
        "largest_logit": compared.largest_logit,
    }


def _print_comparison(compared: "Comparison", chunk: int, name: str) -> None:
    count = compared.convolution.count
    print(f"{count:,} sequences of {name}, read both ways:")
    for view, result in (
        ("convolution", compared.convolution),
        (f"recurrence, {_steps(chunk)} at a time", compared.recurrence),
    ):
        print(f"  {result.accuracy:.2%} right, loss {result.loss:.4f}  as a {view}")
    print(
        f"  {compared.predictions_that_differ:,} of {count:,} predictions differ, the logits by at "
        f"most {compared.largest_difference:.1e}; the largest is {compared.largest_logit:.1f}"
    )


def _steps(chunk: int) -> str:
    return "one step" if chunk == 1 else f"{chunk:,} steps"
