"""The drawings of a comparison's page: curves over lengths, and bars of what was learned."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adder.comparison.report import amount, number, title
from adder.comparison.results import Results, Row
from adder.webpage import drawing, figure, label, text

_COLOURS = ("#c2410c", "#1d6fb8", "#2e8540", "#8b3fb0", "#8a6100", "#00797a", "#b3245f")
_DARK = ("#fb923c", "#6cb8f5", "#7ccf8a", "#d096ee", "#e5c04a", "#4fd1cc", "#f583b0")
STYLE = """
:root { LIGHT }
@media (prefers-color-scheme: dark) { :root { DARK } }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; } .lead { fill: none; stroke-dasharray: 1 3; }
svg .end { font-weight: 600; paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
.learned { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: .5rem 2rem;
  margin: .5rem 0; }
.learned div { display: grid; grid-template-columns: 6.5rem 1fr 3.75rem; gap: 0 .5rem; align-items: center;
  font-size: .9rem; line-height: 1.6; }
.learned h3 { grid-column: 1 / -1; }
.learned b { background: var(--soft); border-radius: .2rem; }
.learned i { display: block; height: .75rem; border-radius: .2rem; }
.learned em { font-style: normal; text-align: right; font-variant-numeric: tabular-nums; }
""".replace("LIGHT", " ".join(f"--m{i}: {each};" for i, each in enumerate(_COLOURS))).replace(
    "DARK", " ".join(f"--m{i}: {each};" for i, each in enumerate(_DARK))
)
_TOP, _BOTTOM, _APART = 30, 44, 15
_ABOUT = {
    "text": "Bits that the model needs for a byte of text that it was not trained on. Shorter is better.",
    "selective-copying": "A few tokens stand at random places among blanks; they must be written again, in "
    "order. Right: the share of them.",
    "induction-heads": "What followed a mark the first time must be written after the mark comes again, "
    "far behind it.",
}

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Figure:
    """Curves over lengths, both axes logarithmic. `curves`: (number of the model, its name, points)."""

    name: str
    about: str
    across: str
    up: str
    curves: Sequence[tuple[int, str, Points]]
    amount: Callable[[float], str]

    def drawn(self) -> str:
        """The heading and the figure."""
        points = [point for _, _, curve in self.curves for point in curve]
        box = _Box(points)
        told = "; ".join(
            f"{name} from {self.amount(curve[0][1])} at {curve[0][0]:,.0f} to {self.amount(curve[-1][1])} at "
            f"{curve[-1][0]:,.0f}"
            for _, name, curve in self.curves
            if curve
        )
        drawn = drawing(
            f"{self.name}, {self.up}, over {self.across}: {told}.",
            box.height,
            lambda width: self._draw(box, width),
        )
        return f"<h2>{text(self.name)}</h2>\n{figure(drawn, self.about)}"

    def _draw(self, box: "_Box", width: int) -> str:
        left, right = 62, width - (112 if width > 500 else 96)
        base = box.height - _BOTTOM

        def at(x: float, y: float) -> tuple[float, float]:
            return left + box.across(x) * (right - left), base - box.up(y) * (base - _TOP)

        marks = [label(0, 14, self.up)]
        for value in box.ticks:
            y = at(1, value)[1]
            marks.append(f'<path class="rule" d="M{left} {y:.1f}H{right}"/>')
            marks.append(label(left - 6, y + 4, self.amount(value), "end"))
        last = -math.inf
        for x in box.lengths:
            place = at(x, 1)[0]
            if place - last >= 50:
                marks.append(label(place, base + 18, f"{x:,.0f}", "middle"))
                last = place
        marks.append(label((left + right) / 2, base + 37, self.across, "middle"))
        return "".join(marks) + self._curves(at, base)

    def _curves(self, at: Callable[[float, float], tuple[float, float]], base: float) -> str:
        marks = []
        ends = sorted((at(*curve[-1]), i, name, curve) for i, name, curve in self.curves if curve)
        # Names that begin at one place across are kept apart; a curve that ends early is named where it ends.
        for across in dict.fromkeys(x for (x, _), *_ in ends):
            here = [each for each in ends if each[0][0] == across]
            places = apart([y for (_, y), *_ in here], base)
            for ((x, y), i, name, curve), place in zip(here, places, strict=True):
                colour = f"var(--m{i % len(_COLOURS)})"
                drawn = [at(*point) for point in curve]
                path = "L".join("{:.1f} {:.1f}".format(*each) for each in drawn)
                marks.append(f'<path class="curve" style="stroke:{colour}" d="M{path}"/>')
                marks += [
                    f'<circle cx="{x:.1f}" cy="{up:.1f}" r="2.5" style="fill:{colour}">'
                    f"<title>{text(name)}, {length:,.0f}: {text(self.amount(value))}</title></circle>"
                    for (x, up), (length, value) in zip(drawn, curve, strict=True)
                ]
                if abs(place - y) > 4:
                    lead = f"M{x:.1f} {y:.1f}L{x + 6:.1f} {place:.1f}"
                    marks.append(f'<path class="lead" style="stroke:{colour}" d="{lead}"/>')
                marks.append(
                    f'<text class="end" x="{x + 9:.1f}" y="{place + 4:.1f}" style="fill:{colour}">{text(name)}</text>'
                )
        return "".join(marks)


class _Box:
    """The range of a figure's axes, and the places of points in it, from 0 to 1."""

    height = 310

    def __init__(self, points: Points):
        self.lengths = sorted({x for x, _ in points})
        self._left, self._right = (math.log(f(self.lengths)) for f in (min, max))
        self.ticks = ticks(min(y for _, y in points), max(y for _, y in points))
        self._low, self._high = math.log(self.ticks[0]), math.log(self.ticks[-1])

    def across(self, x: float) -> float:
        if self._right == self._left:
            return 0.5
        return (math.log(x) - self._left) / (self._right - self._left)

    def up(self, y: float) -> float:
        return (math.log(y) - self._low) / (self._high - self._low)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers of a logarithmic axis, from one below to one above: powers of ten, or 1, 2 and 5 of few powers."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    fine = math.log10(high / low) < 1.6
    every = [k * 10.0**power for power in powers for k in ((1, 2, 5) if fine else (1,))]
    first = max(i for i, each in enumerate(every) if each <= low * 1.0001)
    last = min(i for i, each in enumerate(every) if each >= high * 0.9999)
    while last - first < 3:  # a factor of five at least: noise must not look like a slope
        first, last = max(0, first - 1), last + (last - first < 2)
    return every[first : last + 1]


def apart(places: Sequence[float], lowest: float) -> list[float]:
    """Sorted places of names, moved so that each is a line from the next, and none below the lowest."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + _APART) if found else place)
    limit = lowest
    for i in range(len(found) - 1, -1, -1):
        found[i] = min(found[i], limit)
        limit = found[i] - _APART
    return found


def figures(results: Results) -> list[Figure]:
    """The figures that there are points for."""

    def curves(rows: list[Row], x: str, y: Callable[[Row], float]) -> list[tuple[int, str, Points]]:
        return [
            (i, layer, [(row[x], y(row)) for row in rows if row["layer"] == layer])
            for i, layer in enumerate(results.layers)
        ]

    every = [
        Figure(
            "How fast they train",
            "Tokens that a training step (forward and backward, one row) reads in a second; higher is better. Where "
            "the time grows with the length, as in Mamba, S4 and an LSTM, a curve goes flat; where it grows with its "
            "square, as in a Transformer, it falls.",
            "length of the row, tokens",
            "tokens a second",
            curves(results.training, "length", lambda row: row["length"] / row["seconds"]),
            number,
        ),
        Figure(
            "How fast they write",
            "The time of one token after a context that was read whole; lower is better. A flat curve: the past costs "
            "nothing.",
            "context, tokens",
            "milliseconds a token",
            curves(results.generation, "context", lambda row: 1000 * row["seconds"]),
            number,
        ),
        Figure(
            "What they keep in memory",
            "Bytes that must be kept of one text to write its next token; lower is better. A flat curve: a state of a "
            "fixed size. A Transformer keeps keys and values of every token.",
            "context, tokens",
            "bytes",
            curves(results.generation, "context", lambda row: row["bytes"]),
            amount,
        ),
    ]
    return [each for each in every if any(curve for _, _, curve in each.curves)]


def learned(results: Results) -> list[str]:
    """Bars of what was learned: a group for each question, a bar for each model."""
    groups = []
    for task, unit in results.questions():
        bits = unit.startswith("bits")
        means = {}
        for layer in results.layers:
            if values := results.quality_of(layer, task, unit):
                means[layer] = sum(values) / len(values)
        full = (max(means.values()) or 1.0) if bits else 1.0
        rows = [
            f'<span>{text(layer)}</span><b><i style="width:{100 * means.get(layer, 0) / full:.1f}%;'
            f'background:var(--m{i % len(_COLOURS)})"></i></b><em>{_worth(means.get(layer), bits)}</em>'
            for i, layer in enumerate(results.layers)
        ]
        groups.append(f"<div><h3>{text(question(results, task, unit))}</h3>{''.join(rows)}</div>")
    if not groups:
        return []
    tasks = dict.fromkeys(task for task, _ in results.questions())
    known = [
        f"<p><strong>{text(task.replace('-', ' ').capitalize())}.</strong> {text(_ABOUT[task])}</p>"
        for task in tasks
        if task in _ABOUT
    ]
    seen = sorted({row["tokens"] for row in results.quality})
    seeds = len({row["seed"] for row in results.quality})
    tokens = f"{seen[0]:,}" if len(seen) == 1 else f"{seen[0]:,} to {seen[-1]:,}"
    return [
        "<h2>What they learned</h2>",
        f"<p>Every model learned from the same tokens of a task, {tokens} of them."
        + (
            " So short a training shows how soon a model learns something, not how far it gets."
            * (not results.settings.get("scaled"))
        )
        + (
            f" A bar is the mean of {seeds} trainings; the table below has their range."
            * (seeds > 1)
        )
        + "</p>",
        *known,
        f'<div class="learned">{"".join(groups)}</div>',
    ]


def question(results: Results, task: str, unit: str) -> str:
    """The title of a figure of quality, where there is room to say what its length counts."""
    return title(results, task, unit) + " tokens" * (not unit.startswith("bits"))


def _worth(value: float | None, bits: bool) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if bits else f"{value:.1%}"
