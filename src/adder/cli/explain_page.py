"""The page that `adder explain` writes: one file, drawn by hand, that asks nothing of any network."""

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from adder.data.vocabulary import Vocabulary
    from adder.explanation import Explanation

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --paper: #fff; --faint: #6e6e73; --tint: 226 98 16; --line: #d2d2d7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #f2f2f4; --paper: #161618; --faint: #a0a0a6; --tint: 190 84 20; --line: #3a3a3e; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 52rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .25rem; }
p { margin: .25rem 0 .5rem; } .note { color: var(--faint); font-size: .9rem; }
.text { white-space: pre-wrap; border: 1px solid var(--line); border-radius: .5rem; padding: .75rem;
  font: .95rem/1.7 ui-monospace, monospace; }
.text span { background: rgb(var(--tint) / var(--a)); border-radius: .15rem; }
.text .now { outline: 2px solid var(--ink); } .text i { color: var(--faint); font-style: normal; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--faint); font-size: 11px; }
.bar { fill: rgb(var(--tint)); } .rule { stroke: var(--line); } .reach { stroke: rgb(var(--tint)); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { padding: .2rem .5rem; text-align: right; border-bottom: 1px solid var(--line); }
td:last-child, th:last-child { text-align: left; }
"""
_DARKEST = 0.85
_CHART, _LEFT, _RIGHT = 640, 44, 10
_MOST = 5
_BOUND = " Of S4 they are upper bounds: its low-rank part makes the state fade faster."


@dataclass(frozen=True)
class Report:
    """A model by its path, a text by its name, how many tokens it has, those that were read, and what was seen."""

    model: str
    name: str
    total: int
    pieces: tuple[str, ...]
    seen: "Explanation"

    @property
    def read(self) -> str:
        count = len(self.pieces)
        return f"{count:,} tokens" if count == self.total else f"{count:,} of {self.total:,} tokens"


def pieces(vocabulary: "Vocabulary", ids: Sequence[int]) -> Iterator[str]:
    """The text of each id. A character of several ids comes with the last of them."""
    decoder = vocabulary.decoder()
    for position, each in enumerate(ids):
        piece = decoder.feed([each])
        yield piece + decoder.finish() if position == len(ids) - 1 else piece


def visible(piece: str) -> str:
    """A token as a word of a line: in quotes, with escapes for what does not print."""
    if not piece:
        return "(part)"  # of a character that ends with a later token
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in piece)
    return f"'{shown}'"


def tokens_of(count: float) -> str:
    """A number of tokens, to about three digits."""
    if not math.isfinite(count):
        return "never"
    return f"{count:,.0f}" if count >= 100 else f"{count:.3g}"


def page(report: Report) -> str:
    """The whole page."""
    seen = report.seen
    chosen, row = seen.layers[seen.row.layer], seen.row
    title = f"What {report.model} remembers"
    word = _escaped(visible(report.pieces[row.token]))
    parts = [
        f"<h1>{_escaped(title)}</h1>",
        f"<p>{seen.kind}, {len(seen.layers)} layers; {report.read} of {_escaped(report.name)}.</p>",
    ]
    if chosen.steps is not None:
        low, high = float(chosen.steps.min()), float(chosen.steps.max())
        parts += [
            f"<h2>Steps of layer {row.layer}</h2>",
            '<p class="note">Delta, the mean over channels: how far a token moves the state. A long step takes '
            f"the token in and lets the past fade. No tint {low:.3g}, full tint {high:.3g}.</p>",
            _tinted(report, chosen.steps, "Delta"),
        ]
    else:
        parts.append(
            f'<p class="note">A layer of {seen.kind} moves by the same step at every token: dt, '
            f"{chosen.mean_step:.3g} in the mean of layer {row.layer}.</p>"
        )
    parts += [
        f"<h2>What layer {row.layer} took in at token {row.token}, {word}</h2>",
        '<p class="note">The part of each token in the output of the scan there: contributions by size, summed over '
        "channels. What the scan reads at a token holds some of the tokens before it: of the short convolution, and of "
        f"the layers below. Full tint {float(chosen.shares.max()):.1%}.</p>",
        _tinted(report, chosen.shares, "share", from_zero=True),
        _row_chart(chosen.shares),
        "<h2>Horizons</h2>",
        '<p class="note">Tokens until a number in the state has faded to 1/e: the middle half of each layer, thick, '
        f"its whole range, thin, and the median.{_BOUND if seen.kind == 's4' else ''}</p>",
        _horizon_chart(report),
        _table(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _escaped(text: str) -> str:
    """Text of a page; what no page may hold, control characters and halves of surrogate pairs, as U+FFFD."""
    held = "".join(c if c.isprintable() or c in "\n\t " else "\ufffd" for c in text)
    return html.escape(held)


def _tinted(report: Report, values: "np.ndarray", what: str, *, from_zero: bool = False) -> str:
    low = 0.0 if from_zero else float(values.min())
    span = float(values.max()) - low
    spans = []
    for position, piece in enumerate(report.pieces):
        shown = _escaped(piece).replace("\n", "<i>\u21b5</i>\n") or "<i>\u00b7</i>"
        now = ' class="now"' if position == report.seen.row.token else ""
        if position >= len(values):
            spans.append(f"<i>{shown}</i>")
            continue
        value = float(values[position])
        tint = _DARKEST * (value - low) / span if span > 0 else 0.0
        note = f"{position}: {what} {value:.3g}"
        spans.append(f'<span{now} style="--a:{tint:.3f}" title="{note}">{shown}</span>')
    return f'<div class="text">{"".join(spans)}</div>'


def _row_chart(shares: "np.ndarray") -> str:
    """A bar for each source position."""
    height, base, top = 150, 130, 14
    count, most = len(shares), float(shares.max()) or 1.0
    width = (_CHART - _LEFT - _RIGHT) / count
    bars = "".join(
        f'<rect class="bar" x="{_LEFT + s * width:.2f}" y="{base - (base - top) * x / most:.2f}" '
        f'width="{max(0.8 * width, 0.5):.2f}" height="{(base - top) * x / most:.2f}">'
        f"<title>{s}: {x:.2%}</title></rect>"
        for s, x in enumerate(shares.tolist())
    )
    return (
        f'<svg viewBox="0 0 {_CHART} {height}" role="img" aria-label="Shares of the tokens before">'
        f'<line class="rule" x1="{_LEFT}" x2="{_CHART - _RIGHT}" y1="{base}" y2="{base}"/>{bars}'
        f'<text x="{_LEFT - 4}" y="{top + 6}" text-anchor="end">{most:.1%}</text>'
        f'<text x="{_LEFT - 4}" y="{base}" text-anchor="end">0</text>'
        f'<text x="{_LEFT}" y="{base + 15}">token 0</text>'
        f'<text x="{_CHART - _RIGHT}" y="{base + 15}" text-anchor="end">{count - 1}</text></svg>'
    )


def _horizon_chart(report: Report) -> str:
    """The quantiles of each layer on a logarithmic axis. What never fades ends at its right."""
    all_of = np.stack([memory.horizons() for memory in report.seen.layers])
    finite = all_of[np.isfinite(all_of) & (all_of > 0)]
    low = math.floor(math.log10(finite.min())) if finite.size else 0
    high = max(low + 1, math.ceil(math.log10(finite.max())) if finite.size else 1)
    room, base = _CHART - _LEFT - _RIGHT, 18 * len(all_of) + 8

    def x(tokens: float) -> float:
        power = math.log10(tokens) if 0 < tokens < math.inf else (high if tokens else low)
        return _LEFT + room * (power - low) / (high - low)

    marks = []
    every = max(1, math.ceil((high - low) / 8))
    for power in range(low, high + 1, every):
        at = x(10.0**power)
        name = f"{10**power:,}" if 0 <= power <= 6 else f"1e{power}"
        marks.append(
            f'<line class="rule" x1="{at:.1f}" x2="{at:.1f}" y1="4" y2="{base}"/>'
            f'<text x="{at:.1f}" y="{base + 14}" text-anchor="middle">{name}</text>'
        )
    for index, (least, first, median, third, most) in enumerate(all_of.tolist()):
        y = 18 * index + 14
        marks.append(
            f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{index}</text>'
            f'<line class="reach" x1="{x(least):.1f}" x2="{x(most):.1f}" y1="{y}" y2="{y}"/>'
            f'<line class="reach" stroke-width="6" x1="{x(first):.1f}" x2="{x(third):.1f}" y1="{y}" y2="{y}"/>'
            f'<circle cx="{x(median):.1f}" cy="{y}" r="4" fill="var(--paper)" stroke="var(--ink)">'
            f"<title>layer {index}: median {tokens_of(median)}</title></circle>"
        )
    return (
        f'<svg viewBox="0 0 {_CHART} {base + 20}" role="img" aria-label="Horizons of the layers">'
        + "".join(marks)
        + "</svg>"
    )


def _table(report: Report) -> str:
    seen = report.seen
    step = "dt" if seen.layers[0].steps is None else "Delta"
    rows = []
    for index, memory in enumerate(seen.layers):
        taken = ", ".join(
            f"{_escaped(visible(report.pieces[s]))} {s} ({share:.0%})"
            for s, share in memory.most(_MOST)
        )
        cells = [
            str(index),
            tokens_of(memory.horizons(quantiles=(0.5,))[0]),
            tokens_of(memory.horizons(0.01, (0.5,))[0]),
            f"{memory.mean_step:.3g}",
            taken,
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = ("layer", "to 1/e", "to 1 %", f"mean {step}", f"most taken in at {seen.row.token}")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
