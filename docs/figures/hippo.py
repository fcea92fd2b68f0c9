"""What a HiPPO state remembers, and with what each of its numbers weighs the past."""

import math
from typing import Any

import torch
from matplotlib.figure import Figure as Picture

import adder
from adder.theory.memory import basis, remember, weight
from figures.style import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, RED, SKY, Figure, note

N = 32
DT = 0.005
# name, measure, window in seconds, colour
MEMORIES = (
    ("LegS, the whole past evenly: h' = (A h + B x) / t", "legs", None, BLUE),
    ("LegS as a constant system, fading by e in 1.5 s", "legs", 1.5, SKY),
    ("LegT, the last 3 s evenly", "legt", 3.0, GREEN),
    ("Fourier, the last 3 s evenly", "fourier", 3.0, PURPLE),
    ("LagT, in units of 0.1 s", "lagt", 0.1, RED),
)


def signal(length: int) -> torch.Tensor:
    """Smooth noise with frequencies up to 1 Hz."""
    generator = torch.Generator().manual_seed(7)
    frequency = torch.rand(24, generator=generator, dtype=torch.float64)
    phase = 2 * math.pi * torch.rand(24, generator=generator, dtype=torch.float64)
    t = DT * torch.arange(length, dtype=torch.float64)
    waves = torch.sin(2 * math.pi * frequency * t[:, None] + phase).sum(1)
    return waves / waves.abs().max()


def memory_data() -> dict[str, Any]:
    """Ten seconds read one sample at a time into 32 numbers, and drawn again from these."""
    u = signal(2000)
    return {
        title: remember(u, measure, N, dt=DT, window=window)
        for title, measure, window, _ in MEMORIES
    }


def draw_memory(picture: Picture, data: dict[str, Any]) -> None:
    """One row for each measure: the signal, the memory of it, and the weight of each moment."""
    rows = picture.subplots(len(MEMORIES), 1, sharex=True)
    for plot, (title, _, _, color) in zip(rows, MEMORIES, strict=True):
        memory = data[title]
        counts = memory.weight / memory.weight.max()
        plot.fill_between(-memory.ago, -1.35, -1.35 + 0.9 * counts, color=PALE, linewidth=0)
        plot.plot(-memory.ago, memory.signal, color=GREY, linewidth=0.9)
        plot.plot(-memory.ago, memory.remembered.clamp(-2, 2), color=color, linewidth=1.7)
        plot.set(ylim=(-1.35, 1.25), xlim=(-10, 0.02), yticks=[])
        plot.set_title(title, color=INK, fontsize=9, pad=4)
        plot.grid(False)
        plot.spines["left"].set_visible(False)
    rows[-1].set_xlabel("time, s (now is 0)")
    lines = [rows[0].lines[0], rows[0].collections[0]]
    rows[0].legend(
        lines, ["the signal", "weight of each moment"], ncols=2,
        loc="lower right", bbox_to_anchor=(1, 0.97), borderaxespad=0,
    )  # fmt: skip


BASES = (
    ("LegS: Legendre in exp(-s)", "legs", 4.0),
    ("LegT: Legendre on a window", "legt", 1.3),
    ("LagT: Laguerre", "lagt", 12.0),
    ("Fourier: cosines and sines on a window", "fourier", 1.3),
)


def basis_data() -> dict[str, Any]:
    """phi_n(s) w(s), the measure's own functions, and exp(A s) B, what a state of 32 numbers really does."""
    found = {}
    for _, measure, end in BASES:
        A, B = adder.hippo(measure, N + 1)  # an odd size: fourier then has no idle state
        s = torch.linspace(0, end, 700, dtype=torch.float64)
        inside = s <= 1 if measure in ("legt", "fourier") else s >= 0
        ideal = torch.zeros(len(s), 5, dtype=torch.float64)
        ideal[inside] = basis(measure, 5, s[inside]) * weight(measure, s[inside])[:, None]
        states = adder.StateSpace(A, B, torch.eye(N + 1, dtype=torch.float64)[:5])
        found[measure] = {"ago": s, "ideal": ideal, "actual": states.impulse(s)[..., 0]}
    return found


def draw_basis(picture: Picture, data: dict[str, Any]) -> None:
    """A panel for each measure: what the first five numbers of the state see."""
    plots = picture.subplots(2, 2).flat
    for plot, (title, measure, end) in zip(plots, BASES, strict=True):
        one = data[measure]
        for n, color in enumerate((INK, BLUE, RED, GREEN, ORANGE)):
            if measure in ("legt", "fourier"):  # the other two are what they should be
                plot.plot(one["ago"], one["ideal"][:, n], color=color, linewidth=3, alpha=0.25)
            plot.plot(one["ago"], one["actual"][:, n], color=color, linewidth=1.2, label=f"n = {n}")
        plot.set(title=title, xlim=(0, end))
    handles, labels = picture.axes[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside upper center", ncols=5)
    for plot in picture.axes[2:]:
        plot.set_xlabel("s, how long ago")
    for plot in picture.axes[::2]:
        plot.set_ylabel("weight in h$_n$")
    note(picture.axes[1], 1.02, 2.1, "the window\nends at 1", color=GREY)


FIGURES = (
    Figure("memory", (7.2, 6.2), memory_data, draw_memory),
    Figure("basis", (7.2, 4.6), basis_data, draw_basis),
)
