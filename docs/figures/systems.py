"""One linear system: its states, its discretisations, its two views."""

import math
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure as Picture

import adder
from figures.style import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, RED, Figure, note


def spring(C: list[float] | list[list[float]] | None = None) -> adder.StateSpace:
    """A mass on a spring with some friction, pushed: the state is position and velocity."""
    return adder.StateSpace([[0.0, 1.0], [-4.0, -0.4]], [0.0, 1.0], C or [1.0, 0.0])


def one_system_data() -> dict[str, Any]:
    """After one push: position and velocity at all times, and in steps of half a second."""
    system = spring([[1.0, 0.0], [0.0, 1.0]])
    times = torch.linspace(0, 16, 1200, dtype=torch.float64)
    steps = system.discretize(0.5)
    sampled, _ = steps.recurrence(torch.zeros(32, 1), state=system.B[:, 0])
    return {
        "times": times,
        "states": system.impulse(times)[..., 0],
        "sampled_times": 0.5 * torch.arange(33),
        "sampled": torch.cat([system.B.mT, sampled]),
        "pole": complex(system.poles[system.poles.imag > 0][0]),
    }


def draw_one_system(picture: Picture, data: dict[str, Any]) -> None:
    """The state as a spiral, and its first number against time."""
    left, right = picture.subplots(1, 2, width_ratios=[1, 1.75])
    states, sampled = data["states"], data["sampled"]
    left.plot(states[:, 0], states[:, 1], color=BLUE)
    left.plot(sampled[:, 0], sampled[:, 1], "o", color=RED, markersize=3.8)
    left.set(xlabel="position", ylabel="velocity", title="the state: two numbers")
    left.set(xlim=(-0.45, 0.55), ylim=(-0.85, 1.13))
    note(left, 0.03, 1.04, "pushed: h = B")

    times, pole = data["times"], data["pole"]
    envelope = torch.exp(pole.real * times) / pole.imag
    right.fill_between(times, -envelope, envelope, color=PALE, linewidth=0)
    right.plot(times, states[:, 0], color=BLUE, label="continuous: C exp(A t) B")
    right.plot(
        data["sampled_times"], sampled[:, 0], "o", color=RED, markersize=3.8,
        label="recurrence: h[t] = Abar h[t-1]",
    )  # fmt: skip
    right.set(xlabel="time, s", ylabel="position", title="what it does with one push")
    right.set(xlim=(-0.3, 16), ylim=(-0.5, 0.72))
    right.legend(loc="upper right", ncols=1)
    note(right, 9.3, 0.17, "decays as exp(Re $\\lambda$ t)", color=GREY)
    first = math.pi / 2 / pole.imag
    arrow = {"arrowstyle": "<->", "color": INK, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
    right.annotate("", (first, -0.44), (first + 2 * math.pi / pole.imag, -0.44), arrowprops=arrow)
    note(right, first + 3.4, -0.46, "one turn: 2$\\pi$ / Im $\\lambda$")


METHODS = {
    "zoh": (BLUE, "zero-order hold"),
    "bilinear": (GREEN, "bilinear"),
    "backward_euler": (PURPLE, "backward Euler"),
    "euler": (RED, "Euler"),
}
PUSHES = (1.0, 0.0, -1.0, 1.0, 0.0)  # two seconds each


def discretisation_data() -> dict[str, Any]:
    """The spring under pushes that are constant for two seconds, by each method, at two steps and at many."""

    def run(dt: float, method: str) -> torch.Tensor:
        held = torch.tensor(PUSHES, dtype=torch.float64).repeat_interleave(round(2 / dt))
        return spring().simulate(held, dt, method=method)

    def every_two_seconds(path: torch.Tensor) -> torch.Tensor:
        stride = len(path) // len(PUSHES)
        return path[stride - 1 :: stride]

    exact, steps = run(0.01, "zoh"), [0.4 / 2**k for k in range(9)]
    truth, largest = every_two_seconds(exact), exact.abs().max()
    errors = {
        method: [
            float((every_two_seconds(run(dt, method)) - truth).abs().max() / largest)
            for dt in steps
        ]
        for method in METHODS
    }
    paths = {dt: {method: run(dt, method) for method in METHODS} for dt in (0.4, 0.05)}
    return {"exact": exact, "paths": paths, "steps": steps, "errors": errors}


def draw_discretisation(picture: Picture, data: dict[str, Any]) -> None:
    """Two step sizes on the left, the error against the step size on the right."""
    axes = picture.subplot_mosaic([["0.4", "error"], ["0.05", "error"]], width_ratios=[1.75, 1])
    for dt, paths in data["paths"].items():
        plot = axes[f"{dt:g}"]
        push = 0.25 * torch.tensor((*PUSHES, PUSHES[-1]))
        plot.stairs(push[:-1], range(0, 12, 2), fill=True, color=PALE, baseline=0)
        plot.plot(0.01 * torch.arange(1, 1001), data["exact"], color=GREY, linewidth=1.2)
        shape = {"marker": "o", "markersize": 3.4} if dt > 0.1 else {}
        for method in ("euler", "backward_euler", "zoh", "bilinear"):  # the last on top
            path, width = paths[method], 2.2 if method == "zoh" else 1.1
            after = dt * torch.arange(1, len(path) + 1)
            plot.plot(after, path, color=METHODS[method][0], linewidth=width, **shape)
        plot.set(xlim=(0, 10), ylim=(-0.95, 0.95), ylabel="position")
        plot.set_title(f"steps of dt = {dt:g} s")
    axes["0.05"].set_xlabel("time, s")
    axes["0.4"].tick_params(labelbottom=False)
    note(axes["0.05"], 0.25, -0.85, "shaded: the push, held for two seconds at a time", color=GREY)

    plot, steps = axes["error"], data["steps"]
    for method, (color, label) in METHODS.items():
        plot.loglog(steps, data["errors"][method], "o-", color=color, label=label, markersize=3.4)
    plot.set(xlabel="step dt, s", title="largest error, relative", ylim=(1e-16, 1e3))
    note(plot, 1.6e-3, 3.5e-2, "order 1", color=RED)
    note(plot, 1.1e-2, 2.5e-5, "order 2", color=GREEN)
    note(plot, 1.6e-3, 6e-14, "exact at every step", color=BLUE)
    plot.legend(loc="center left", bbox_to_anchor=(0, 0.36))


def convolution_data() -> dict[str, Any]:
    """The kernel of the sampled spring, its matrix, and one input through both views."""
    system = spring().discretize(0.25)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, generator=generator, dtype=torch.float64).repeat_interleave(6)
    recurrence, _ = system.recurrence(x)
    convolution = system.convolution(x)
    K = system.kernel(len(x))
    lag = torch.arange(28)[:, None] - torch.arange(28)
    matrix = torch.where(lag >= 0, K[lag.clamp(min=0)], torch.nan)
    return {
        "kernel": K, "matrix": matrix, "x": x,
        "recurrence": recurrence, "convolution": convolution,
    }  # fmt: skip


def draw_convolution(picture: Picture, data: dict[str, Any]) -> None:
    """Kernel and matrix above, both outputs and their difference below."""
    rows = [["kernel", "matrix"], ["views", "views"], ["difference", "difference"]]
    axes = picture.subplot_mosaic(rows, width_ratios=[1.6, 1], height_ratios=[2.1, 1.4, 0.7])
    plot, K = axes["kernel"], data["kernel"][:56]
    plot.axhline(0, color=GREY, linewidth=0.7)
    plot.vlines(range(len(K)), 0, K, color=BLUE, linewidth=1.1)
    plot.plot(range(len(K)), K, "o", color=BLUE, markersize=3.2)
    plot.set(xlabel="l, steps ago", title="the kernel K[l] = C Abar$^l$ Bbar", xlim=(-1, 56))
    plot, largest = axes["matrix"], float(data["kernel"].abs().max())
    colors = mpl.colormaps["PuOr"].resampled(15)
    image = plot.imshow(data["matrix"], cmap=colors, vmin=-largest, vmax=largest)
    plot.set(xlabel="step of the input", ylabel="step of the output")
    plot.set_title("y = K * x as a matrix")
    plot.grid(False)
    picture.colorbar(image, ax=plot, shrink=0.8)

    plot, steps = axes["views"], range(len(data["x"]))
    plot.step(
        steps, 0.2 * data["x"], where="mid", color=GREY, linewidth=0.9, label="input (scaled)"
    )
    plot.plot(steps, data["convolution"], color=ORANGE, linewidth=4, label="convolution")
    plot.plot(steps, data["recurrence"], color=BLUE, linewidth=1.3, label="recurrence")
    plot.set(title="one input, two views", xlim=(-1, len(data["x"])))
    plot.tick_params(labelbottom=False)
    plot.legend(loc="lower right", ncols=3, bbox_to_anchor=(1, 0.98), borderaxespad=0)
    plot, difference = axes["difference"], (data["convolution"] - data["recurrence"]) * 1e16
    plot.axhline(0, color=GREY, linewidth=0.7)
    plot.vlines(steps, 0, difference, color=RED, linewidth=1.4)
    plot.set(xlabel="t, steps", title="their difference, in units of 10$^{-16}$")
    plot.set(xlim=(-1, len(data["x"])), yticks=(-3, 0, 3))


FIGURES = (
    Figure("one_system", (7.2, 2.9), one_system_data, draw_one_system),
    Figure("discretisation", (7.2, 4.2), discretisation_data, draw_discretisation),
    Figure("convolution", (7.2, 5.2), convolution_data, draw_convolution),
)
