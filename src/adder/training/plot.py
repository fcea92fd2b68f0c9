"""loss.png: the loss curve of a run."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from adder.files import replace_file

PICTURE = "loss.png"
_SMOOTHING = 0.95


def plot_loss(run: Path, lines: list[dict[str, Any]], unit: str = "nats per token") -> None:
    """Draw training and validation loss, in a unit, of the lines of metrics.jsonl."""
    if not lines:
        return
    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    steps = [line["step"] for line in lines]
    losses = [line["loss"] for line in lines]
    axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.7)
    axes.plot(steps, _smoothed(losses), color="tab:blue", label="training (smoothed)")
    evaluated = [line for line in lines if "validation_loss" in line]
    if evaluated:
        axes.plot(
            [line["step"] for line in evaluated],
            [line["validation_loss"] for line in evaluated],
            color="tab:orange",
            marker="o",
            label=f"validation: {_words(evaluated[-1])}",
        )
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss ({unit})")
    axes.set_title(run.resolve().name, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    picture = BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is shown as boxes.
        warnings.filterwarnings("ignore", message="Glyph ")
        figure.savefig(picture, format="png")
    replace_file(run / PICTURE, picture.getvalue())


def _words(line: dict[str, Any]) -> str:
    accuracy = line.get("validation_accuracy")
    told = "" if accuracy is None else f", {accuracy:.2%} right"
    return f"{line['validation_loss']:.3f}{told}"


def _smoothed(values: list[float]) -> list[float]:
    """The running mean with weights that fall off, without the usual pull to the first value."""
    mean, weight, result = 0.0, 0.0, []
    for value in values:
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        result.append(mean / weight)
    return result
