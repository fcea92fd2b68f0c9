"""The drawings of the page of `adder explain`, as SVG: horizons, parts of tokens, and curves of single channels."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from adder.webpage import drawing, label

if TYPE_CHECKING:
    from adder.explanation import Explanation

STYLE = """
.bar { fill: rgb(var(--tint)); } .reach { stroke: rgb(var(--tint)); }
.middle { fill: var(--paper); stroke: var(--ink); stroke-width: 1.5; }
.line { fill: none; stroke-width: 1.5; stroke-linejoin: round; }
.read { stroke: var(--other); } .drawn { stroke: rgb(var(--tint)); }
"""
_LEFT, _RIGHT = 52, 14
_PANEL = 92


def tokens_of(count: float) -> str:
    """A number of tokens, to about three digits."""
    if not math.isfinite(count):
        return "never"
    return f"{count:,.0f}" if count >= 99.95 else f"{count:#.3g}"


def bars(values: "np.ndarray", first: int, what: str, most: float | None = None) -> str:
    """A bar for each token from position `first` on, up to `most`, or to the largest of them."""
    height, base, top = 168, 128, 16
    full = most or float(values.max()) or 1.0
    last = first + len(values) - 1

    def draw(width: int) -> str:
        room = width - _LEFT - _RIGHT
        each = room / len(values)
        marks = [
            f'<path class="rule" d="M{_LEFT} {y}H{width - _RIGHT}"/>'
            for y in (base, (base + top) / 2, top)
        ]
        for s, x in enumerate(values.tolist()):
            tall = (base - top) * min(1.0, x / full)
            marks.append(
                f'<rect class="bar" x="{_LEFT + s * each:.2f}" y="{base - tall:.2f}" '
                f'width="{max(0.8 * each, 0.5):.2f}" height="{tall:.2f}">'
                f"<title>token {first + s}: {x:.2%}</title></rect>"
            )
        marks += [
            label(_LEFT - 6, top + 4, f"{full:.3g}" if full > 1 else _percent(full), "end"),
            label(_LEFT - 6, (base + top) / 2 + 4, _percent(full / 2), "end"),
            label(_LEFT - 6, base + 4, "0 %", "end"),
        ]
        return "".join(marks) + _positions(first, last, width, base, "token of the text")

    best = int(np.argmax(values))
    about = (
        f"{what}, for tokens {first} to {last}: the largest is {values[best]:.1%}, of token "
        f"{first + best}; the sum is {values.sum():.3g}."
    )
    return drawing(about, height, draw)


def horizons(seen: "Explanation") -> str:
    """The quantiles of each layer on a logarithmic axis. What never fades ends at its right."""
    all_of = np.stack([memory.horizons() for memory in seen.layers])
    finite = all_of[np.isfinite(all_of) & (all_of > 0)]
    low = math.floor(math.log10(finite.min())) if finite.size else 0
    high = max(low + 1, math.ceil(math.log10(finite.max())) if finite.size else 1)
    base = 18 * len(all_of) + 26

    def draw(width: int) -> str:
        room = width - _LEFT - _RIGHT - 20

        def x(tokens: float) -> float:
            power = math.log10(tokens) if 0 < tokens < math.inf else (high if tokens else low)
            return _LEFT + room * (power - low) / (high - low)

        marks = [label(_LEFT - 10, 14, "layer", "end")]
        every = max(1, math.ceil((high - low) / (8 if width > 500 else 4)))
        for power in range(low, high + 1, every):
            at = x(10.0**power)
            near = -3 <= power <= 6
            name = (
                (f"{10**power:,}" if power >= 0 else f"{10.0**power:g}") if near else f"1e{power}"
            )
            marks.append(
                f'<path class="rule" d="M{at:.1f} 20V{base}"/>'
                + label(at, base + 16, name, "middle")
            )
        for index, (least, first, median, third, most) in enumerate(all_of.tolist()):
            y = 18 * index + 32
            told = f"layer {index}: median {tokens_of(median)}, from {tokens_of(least)} to {tokens_of(most)}"
            marks.append(
                label(_LEFT - 10, y + 4, str(index), "end", "name")
                + f'<path class="reach" d="M{x(least):.1f} {y}H{x(most):.1f}"/>'
                f'<path class="reach" stroke-width="7" d="M{x(first):.1f} {y}H{x(third):.1f}"/>'
                f'<circle class="middle" cx="{x(median):.1f}" cy="{y}" r="4"><title>{told}</title></circle>'
            )
        marks.append(label(_LEFT + room / 2, base + 34, "tokens until 1/e is left", "middle"))
        return "".join(marks)

    medians = ", ".join(tokens_of(x) for x in all_of[:, 2].tolist())
    about = f"Tokens until a number of the state has faded to 1/e; medians of the layers from 0 on: {medians}."
    return drawing(about, base + 42, draw)


def panels(
    named: Sequence[tuple[str, list[tuple[str, "np.ndarray"]]]], first: int, across: str, about: str
) -> str:
    """Curves below each other, each panel (its name, (class of the line, values)) to its own scale."""
    base = _PANEL * len(named)

    def draw(width: int) -> str:
        marks = []
        for i, (name, curves) in enumerate(named):
            middle, half = _PANEL * i + 58, 30
            most = max(float(np.abs(values).max()) for _, values in curves) or 1.0
            marks.append(
                label(_LEFT, _PANEL * i + 18, name, "start", "name")
                + f'<path class="rule" d="M{_LEFT} {middle}H{width - _RIGHT}"/>'
                + label(_LEFT - 6, middle + 4, "0", "end")
                + label(_LEFT - 6, middle - half + 8, f"{most:.2g}", "end")
            )
            for kind, values in curves:
                step = (width - _LEFT - _RIGHT) / max(1, len(values) - 1)
                path = "L".join(
                    f"{_LEFT + s * step:.1f} {middle - half * x / most:.1f}"
                    for s, x in enumerate(values.tolist())
                )
                marks.append(f'<path class="line {kind}" d="M{path}"/>')
        last = first + len(named[0][1][0][1]) - 1
        return "".join(marks) + _positions(first, last, width, base, across)

    return drawing(about, base + 40, draw)


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %" if part >= 0.1 else f"{100 * part:.2g} %"


def _positions(first: int, last: int, width: int, base: float, across: str) -> str:
    """The names below an axis of positions: both ends, and what they are."""
    return (
        label(_LEFT, base + 17, f"{first:,}")
        + (label(width - _RIGHT, base + 17, f"{last:,}", "end") if last > first else "")
        + label((_LEFT + width - _RIGHT) / 2, base + 32, across, "middle")
    )
