"""A comparison as one HTML file: tables, and figures drawn by hand. It asks nothing of any network."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adder.comparison.report import amount, quality, rate, title
from adder.comparison.results import Results, Row

_COLOURS = ("#c2410c", "#1d6fb8", "#2e8540", "#8b3fb0", "#a37200", "#00827f", "#b3245f")
_DARK = ("#fb923c", "#6cb8f5", "#7ccf8a", "#d096ee", "#e5c04a", "#4fd1cc", "#f583b0")
_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --paper: #fff; --faint: #6e6e73; --line: #d9d9de; LIGHT }
@media (prefers-color-scheme: dark) {
  :root { --ink: #f2f2f4; --paper: #161618; --faint: #a0a0a6; --line: #3a3a3e; DARK }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 54rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .25rem; }
p { margin: .25rem 0 .75rem; } .note, figcaption { color: var(--faint); font-size: .9rem; }
figure { margin: 1rem 0; } svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--faint); font: 12px system-ui, sans-serif; } .rule { stroke: var(--line); fill: none; }
.curve { fill: none; stroke-width: 2; } .end { font-weight: 600; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
""".replace("LIGHT", " ".join(f"--m{i}: {each};" for i, each in enumerate(_COLOURS))).replace(
    "DARK", " ".join(f"--m{i}: {each};" for i, each in enumerate(_DARK))
)
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 300, 62, 96, 12, 40


@dataclass(frozen=True)
class Figure:
    """Curves over lengths, both axes logarithmic."""

    name: str
    about: str
    across: str
    up: str
    curves: Sequence[tuple[int, str, list[tuple[float, float]]]]
    label: Callable[[float], str] = rate


def page(results: Results) -> str:
    """Return the file."""
    body = [
        "<h1>RNN, Transformer, S4 and Mamba, measured</h1>",
        f"<p>{len(results.layers)} kinds of block, in models of about {_parameters(results)} parameters, on "
        f"{_text(results.machine)}. "
        f"Made by <code>adder compare</code> in {results.seconds:.0f} s"
        + ("." if results.complete else "; <strong>interrupted</strong>, so some of it is missing.")
        + "</p>",
        *_summary(results),
        *(_drawn(each) for each in _figures(results) if any(c[2] for c in each.curves)),
        *_models(results),
        *_left_out(results),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>adder compare</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _parameters(results: Results) -> str:
    return f"{results.models[0]['parameters']:,}" if results.models else "no"


def _summary(results: Results) -> list[str]:
    """The table of the story: what each is good at."""
    rows = [
        (title(task, unit), [quality(results, layer, task, unit) for layer in results.layers])
        for task, unit in results.questions()
    ]
    for words, key, size, per in (
        ("training", "training", "length", "tokens/s at"),
        ("generation", "generation", "context", "tokens/s after"),
    ):
        measured: list[Row] = getattr(results, key)
        if not measured:
            continue
        for at in dict.fromkeys((min(r[size] for r in measured), max(r[size] for r in measured))):
            here = {r["layer"]: r for r in measured if r[size] == at}
            tokens = at if key == "training" else 1
            cells = [
                rate(tokens / here[layer]["seconds"]) if layer in here else "-"
                for layer in results.layers
            ]
            rows.append((f"{words}, {per} {at:,}", cells))
            if key == "generation":
                sizes = [
                    amount(here[layer]["bytes"]) if layer in here else "-"
                    for layer in results.layers
                ]
                rows.append((f"state after {at:,}", sizes))
    exponents = {row["layer"]: row for row in results.exponents()}
    for words, key in (
        ("training time ~ length^p", "training"),
        ("token time ~ length^p", "token"),
    ):
        cells = [
            "-"
            if exponents[layer][key] is None
            else f"{exponents[layer][key]:.2f} ({exponents[layer][key + '_theory']})"
            for layer in results.layers
        ]
        if set(cells) != {"-"}:
            rows.append((f"{words} (in theory)", cells))
    return _table("The table", ["", *results.layers], rows) if rows else []


def _models(results: Results) -> list[str]:
    rows = [
        (
            row["layer"],
            [str(row["d_model"]), f"{row['parameters']:,}", f"{row['difference']:+.1%}"],
        )
        for row in results.models
    ]
    return _table("The models", ["", "width", "parameters", "beside mamba"], rows)


def _left_out(results: Results) -> list[str]:
    if not results.left_out:
        return []
    items = [
        f"<li>{_text(row['part'])}, {_text(row['layer'])}: {_text(row['why'])}</li>"
        for row in results.left_out
    ]
    return ["<h2>Left out</h2>", '<ul class="note">', *items, "</ul>"]


def _table(heading: str, names: list[str], rows: list[tuple[str, list[str]]]) -> list[str]:
    cells = "".join(f"<th>{_text(name)}</th>" for name in names)
    lines = [f"<h2>{_text(heading)}</h2>", f'<div class="scroll"><table><tr>{cells}</tr>']
    for first, values in rows:
        inside = "".join(f"<td>{_text(value)}</td>" for value in (first, *values))
        lines.append(f"<tr>{inside}</tr>")
    return [*lines, "</table></div>"]


def _figures(results: Results) -> list[Figure]:
    def curves(
        rows: list[Row], x: str, y: Callable[[Row], float]
    ) -> list[tuple[int, str, list[tuple[float, float]]]]:
        return [
            (i, layer, [(row[x], y(row)) for row in rows if row["layer"] == layer])
            for i, layer in enumerate(results.layers)
        ]

    return [
        Figure(
            "Training",
            "Tokens that a step (forward and backward, one row) reads in a second. Flat is linear time.",
            "length of the row, tokens",
            "tokens/s",
            curves(results.training, "length", lambda row: row["length"] / row["seconds"]),
        ),
        Figure(
            "Generation",
            "The time of one token after a context that was read whole. Flat is constant cost.",
            "context, tokens",
            "ms a token",
            curves(results.generation, "context", lambda row: 1000 * row["seconds"]),
        ),
        Figure(
            "Memory of one stream",
            "Bytes that must be kept to write the next token.",
            "context, tokens",
            "",
            curves(results.generation, "context", lambda row: row["bytes"]),
            amount,
        ),
    ]


def _drawn(figure: Figure) -> str:
    points = [point for _, _, curve in figure.curves for point in curve]
    left, right = (f(math.log2(x) for x, _ in points) for f in (min, max))
    low = math.floor(min(math.log10(y) for _, y in points))
    high = max(low + 1, math.ceil(max(math.log10(y) for _, y in points)))
    right = max(right, left + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log2(x) - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)
        up = (math.log10(y) - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return _LEFT + across, _HEIGHT - _BOTTOM - up

    lines = []
    for power in range(low, high + 1):
        _, y = at(2**left, 10.0**power)
        lines.append(f'<path class="rule" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        words = _text(figure.label(10.0**power))
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{words}</text>')
    for x in sorted({x for x, _ in points})[:: 1 + (right - left > 6)]:
        place, _ = at(x, 10.0**low)
        words = f"{x / 1024:g}K" if x >= 1024 else f"{x:g}"
        lines.append(
            f'<text x="{place:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{words}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    lines.append(
        f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{_text(figure.across)}</text>'
    )
    if figure.up:
        lines.append(f'<text x="{_LEFT + 6}" y="{_TOP + 12}">{_text(figure.up)}</text>')
    taken: list[float] = []
    ends = sorted((at(*curve[-1])[1], i, name, curve) for i, name, curve in figure.curves if curve)
    for y, i, name, curve in ends:
        path = "L".join("{:.1f} {:.1f}".format(*at(*point)) for point in curve)
        lines.append(
            f'<path class="curve" style="stroke:var(--m{i % len(_COLOURS)})" d="M{path}"/>'
        )
        for point in curve:
            x_at, y_at = at(*point)
            lines.append(
                f'<circle cx="{x_at:.1f}" cy="{y_at:.1f}" r="2.5" style="fill:var(--m{i % len(_COLOURS)})"/>'
            )
        place = max(y, taken[-1] + 14) if taken else y  # names keep apart
        taken.append(place)
        lines.append(
            f'<text class="end" x="{_WIDTH - _RIGHT + 8}" y="{place + 4:.1f}" '
            f'style="fill:var(--m{i % len(_COLOURS)})">{_text(name)}</text>'
        )
    return (
        f"<h2>{_text(figure.name)}</h2>\n<figure>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_text(figure.name)}">'
        + "".join(lines)
        + f"</svg><figcaption>{_text(figure.about)}</figcaption></figure>"
    )


def _text(words: str) -> str:
    return html.escape(words)
