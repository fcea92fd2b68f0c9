"""A linear system at a glance: impulse response, step response, poles."""

import math
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adder.errors import UsageError
from adder.theory.interop import library

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from adder.theory.state_space import DiscreteStateSpace, StateSpace

_NAMED = 8  # so many lines have room for a legend


def plot_continuous(system: "StateSpace", times: Tensor, path: str | Path | None) -> "Figure":
    """The three pictures of a system in continuous time."""
    times = times.reshape(-1)
    figure, axes = _figure("StateSpace.plot")
    _response(axes[0], "impulse response", times, system.impulse(times), "time", steps=False)
    _response(axes[1], "step response", times, system.step(times), "time", steps=False)
    axes[2].axvline(0, color="black", linewidth=0.8)
    _poles(axes[2], system.poles)
    return _saved(figure, path)


def plot_discrete(system: "DiscreteStateSpace", length: int, path: str | Path | None) -> "Figure":
    """The three pictures of a system in discrete time."""
    figure, axes = _figure("DiscreteStateSpace.plot")
    t = list(range(length))
    _response(axes[0], "impulse response", t, system.impulse(length), "step", steps=True)
    _response(axes[1], "step response", t, system.step(length), "step", steps=True)
    angle = torch.linspace(0, 2 * math.pi, 200)
    axes[2].plot(angle.cos(), angle.sin(), color="black", linewidth=0.8)
    _poles(axes[2], system.poles)
    axes[2].set_aspect("equal", adjustable="datalim")
    return _saved(figure, path)


def _figure(method: str) -> tuple["Figure", Any]:
    figure = library(method, "matplotlib.figure", "matplotlib", "adder-ssm[plot]").Figure(
        figsize=(11, 3.4), dpi=100, layout="constrained"
    )
    return figure, figure.subplots(1, 3)


def _response(axes: "Axes", title: str, t: Any, y: Tensor, unit: str, *, steps: bool) -> None:
    y = y.detach().cpu().reshape(len(t), -1, y.shape[-1] if y.ndim == 3 else 1)
    outputs, inputs = y.shape[1:]
    for row in range(outputs):
        for column in range(inputs):
            label = f"y{row + 1} from u{column + 1}"
            axes.plot(
                t, y[:, row, column], label=label, drawstyle="steps-post" if steps else "default"
            )
    if 1 < outputs * inputs <= _NAMED:
        axes.legend()
    axes.set_title(title)
    axes.set_xlabel(unit)
    axes.grid(alpha=0.3)


def _poles(axes: "Axes", poles: Tensor) -> None:
    poles = poles.detach().cpu()
    axes.plot(poles.real, poles.imag, "x", color="tab:red")
    axes.axhline(0, color="black", linewidth=0.4)
    axes.set_title("poles")
    axes.set_xlabel("real")
    axes.set_ylabel("imaginary")
    axes.grid(alpha=0.3)


def _saved(figure: "Figure", path: str | Path | None) -> "Figure":
    if path is not None:
        path = Path(path)
        picture = BytesIO()
        try:
            figure.savefig(picture, format=path.suffix.lstrip(".") or "png")
            path.write_bytes(picture.getvalue())
        except (ValueError, OSError) as error:
            raise UsageError(f"plot: cannot write {path}: {error}") from None
    return figure
