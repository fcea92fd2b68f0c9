"""The page that `adder explain` writes: one file, drawn by hand, that asks nothing of any network."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adder.cli import explain_figures as figures
from adder.cli.explain_figures import tokens_of
from adder.webpage import document, figure, prints, table
from adder.webpage import text as escaped

if TYPE_CHECKING:
    from adder.data.vocabulary import Vocabulary
    from adder.explanation import Explanation

_STYLE = (
    """
:root { --wash: 226 98 16; } @media (prefers-color-scheme: dark) { :root { --wash: 190 84 20; } }
.text { white-space: pre-wrap; border: 1px solid var(--line); border-radius: .5rem; padding: .75rem;
  font: .95rem/1.7 ui-monospace, monospace; margin: .5rem 0; }
.text span { background: rgb(var(--wash) / var(--a)); border-radius: .15rem; }
.text span, .text i { unicode-bidi: isolate; }
.text small { color: var(--faint); font: .85rem system-ui, sans-serif; }
.text .now { outline: 2px solid var(--ink); } .text i { color: var(--faint); font-style: normal; }
.scale { display: flex; flex-wrap: wrap; gap: .25rem .6rem; align-items: center; color: var(--faint);
  font-size: .85rem; }
.scale b { width: 7rem; height: .8rem; border-radius: .15rem; border: 1px solid var(--line);
  background: linear-gradient(to right, transparent, rgb(var(--wash) / .85)); }
.scale u { display: inline-block; width: 1.5rem; border-top: 3px solid; vertical-align: middle; margin-right: .4rem; }
.scale .read { color: var(--other); } .scale .drawn { color: rgb(var(--tint)); }
dt { font-weight: 600; margin-top: .5rem; } dd { margin: 0; max-width: 46rem; }
"""
    + figures.STYLE
)
_DARKEST = 0.85
_MOST = 5
_FAINT = 0.05  # of the tokens before those that a text begins with: all that they have together
_CLOSE = 64  # tokens of a drawing of single channels: as many as can be told apart
_BOUND = " Of S4 they are upper bounds: its low-rank part makes the state fade faster."


@dataclass(frozen=True)
class Report:
    """A model by its path, a text by its name, how many tokens it has, those that were read, and what was seen.

    last: how many tokens, up to the one that is looked at, the figures of one token show; None shows all.
    """

    model: str
    name: str
    total: int
    pieces: tuple[str, ...]
    seen: "Explanation"
    last: int | None = None

    @property
    def read(self) -> str:
        count = len(self.pieces)
        return f"{count:,} tokens" if count == self.total else f"{count:,} of {self.total:,} tokens"

    @property
    def first(self) -> int:
        """The first token that the figures of one token show."""
        return 0 if self.last is None else self.seen.row.token + 1 - self.last

    @property
    def longer(self) -> list[int]:
        """The layers half of whose state remembers longer than what was read."""
        count = len(self.pieces)
        layers = enumerate(self.seen.layers)
        return [i for i, memory in layers if memory.horizons(quantiles=(0.5,))[0] > count]


def pieces(vocabulary: "Vocabulary", ids: Sequence[int]) -> Iterator[str]:
    """The text of each id. A character of several ids comes with the last of them."""
    decoder = vocabulary.decoder()
    for position, each in enumerate(ids):
        piece = decoder.feed([each])
        yield piece + decoder.finish() if position == len(ids) - 1 else piece


def visible(piece: str) -> str:
    """A token as a word of a line: in quotes, with escapes for what does not print.

    What prints but is seen as nothing or as another space is escaped too, or two tokens would be one word.
    """
    if not piece:
        return "(part)"  # of a character that ends with a later token
    shown = "".join(c if prints(c) and _is_seen(c) else ascii(c)[1:-1] for c in piece)
    return f"'{shown}'"


def _is_seen(character: str) -> bool:
    return character == " " or unicodedata.category(character) not in ("Cf", "Zs", "Zl", "Zp")


def page(report: Report) -> str:
    """The whole page."""
    seen, row = report.seen, report.seen.row
    title = f"What {report.model} remembers"
    word = visible(report.pieces[row.token])
    parts = [
        f"<h1>{escaped(title)}</h1>",
        f"<p>A language model of {len(seen.layers)} layers of {seen.kind}. It read {report.read} of "
        f"{escaped(report.name)}. One layer is looked into, {row.layer}, at one token, {row.token}: "
        f"<strong>{escaped(word)}</strong>.</p>",
    ]
    if report.longer:
        parts.append(f'<p class="notice">{escaped(few_tokens(report))}</p>')
    parts += [*_horizons(report), *_steps(report), *_row(report, word), *_recall(report)]
    parts += [*_kernels(report), *_taken(report, word), *_words()]
    return document(title, _STYLE, parts)


def few_tokens(report: Report) -> str:
    """That fewer tokens were read than some layers remember."""
    layers = report.longer
    named = ", ".join(map(str, layers[:8])) + (", ..." if len(layers) > 8 else "")
    return (
        f"The {len(report.pieces):,} tokens that were read are fewer than the median horizon of "
        f"layer{'s' * (len(layers) > 1)} {named}: what they forget is not seen in them."
    )


def numbers(report: Report) -> tuple[list[str], list[list[str]]]:
    """The table of the layers: its heads and its rows."""
    seen = report.seen
    step = "dt" if seen.layers[0].steps is None else "Delta"
    rows = [
        [
            str(index),
            tokens_of(memory.horizons(quantiles=(0.5,))[0]),
            tokens_of(memory.horizons(0.01, (0.5,))[0]),
            f"{memory.mean_step:#.3g}",
            "-" if memory.held is None else tokens_of(memory.held),
        ]
        for index, memory in enumerate(seen.layers)
    ]
    return ["layer", "to 1/e", "to 1 %", f"mean {step}", "held"], rows


def _horizons(report: Report) -> list[str]:
    seen = report.seen
    caption = (
        "The horizon of a number in the state: tokens until 1/e, 37 %, of what was written to it is left. Of each "
        "layer its whole range, thin; the middle half, thick; and the median."
        + (_BOUND if seen.kind == "s4" else "")
    )
    if not all(np.isfinite(memory.horizons()).all() for memory in seen.layers):
        caption += " A line to the right end is of numbers that never fade."
    held = (
        "; held: how many tokens' inputs the state gives back." if seen.recall is not None else "."
    )
    return [
        "<h2>How long each layer remembers</h2>",
        figure(figures.horizons(seen), caption),
        table(
            "Medians of a layer, in tokens: until 1/e is left, and until 1 % is; the mean step"
            + held,
            *numbers(report),
        ),
    ]


def _steps(report: Report) -> list[str]:
    seen, layer = report.seen, report.seen.row.layer
    steps = seen.layers[layer].steps
    head = f"<h2>How far each token moves layer {layer}</h2>"
    if steps is None:
        return [
            head,
            f"<p>A layer of {seen.kind} moves by the same step at every token: dt, "
            f"{seen.layers[layer].mean_step:.3g} in the mean of its channels. It cannot choose.</p>",
        ]
    low, high = float(steps.min()), float(steps.max())
    return [
        head,
        "<p>Delta is the step that a token takes, here the mean over the channels. A long step takes the token in "
        "and lets the past fade; a short one passes over it and keeps the past."
        + (f" The longest step here is {high / low:.3g} times the shortest." if low > 0 else "")
        + "</p>",
        _scale(f"Delta {low:#.3g}", f"{high:#.3g}"),
        _tinted(report, steps, 0, "Delta", low),
    ]


def _row(report: Report, word: str) -> list[str]:
    row, first = report.seen.row, report.first
    shares = report.seen.layers[row.layer].shares[first:]
    return [
        f"<h2>What layer {row.layer} read for token {row.token}, {escaped(word)}</h2>",
        "<p>The part of each token in what the scan puts out there, without the skip D u[t]: sizes of the "
        "contributions, summed over the channels. It is what attention would be in a Transformer. What the scan reads "
        "at a token holds some of the tokens before it too: of the short convolution, and of the layers below.</p>",
        _scale("0", f"{float(shares.max()):.1%}"),
        _tinted(report, shares, first, "share"),
        figure(
            figures.bars(shares, first, f"Part in the output at token {row.token}"),
            f"The same as bars: parts of the output at token {row.token}. All tokens up to it make 100 %, "
            "without the skip D u[t].",
        ),
    ]


def _recall(report: Report) -> list[str]:
    seen, row, first = report.seen, report.seen.row, report.first
    kept, recall = seen.layers[row.layer].kept, seen.recall
    head = f"<h2>What the state of layer {row.layer} still holds after token {row.token}</h2>"
    if recall is None or kept is None:
        return [head, "<p>A layer of the method dss has no state.</p>"]
    n, count = recall.state.shape[1], len(kept)
    selective = seen.layers[row.layer].steps is not None
    close = slice(max(first, count - _CLOSE), count)
    order = np.argsort(-recall.held, kind="stable")
    chosen = dict.fromkeys(int(order[i]) for i in (0, len(order) // 2, len(order) - 1))
    curves = [
        (
            f"{name}, channel {i}: {tokens_of(recall.held[i])} of {n} held",
            [("read", recall.inputs[close, i]), ("drawn", recall.drawn[close, i])],
        )
        for name, i in zip(("holds most", "in the middle", "holds least"), chosen, strict=False)
    ]
    return [
        head,
        f"<p>All that the scan knows of the past is its state: {n} numbers for each channel. So it can hold the "
        f"inputs of {n} tokens at most; of the {count:,} up to here it holds "
        f"<strong>{tokens_of(float(kept.sum()))}</strong>, in the mean of the channels. 100 %: the best linear reader "
        "of the state, to whom each number is known to a part in a thousand"
        + (", and who also knows every step and B," if selective else ",")
        + " gives the input of that token back; 0 %: it is forgotten. What the model itself makes of its state may be "
        "less."
        + (" The short convolution keeps a few inputs of its own, beside it." if selective else "")
        + "</p>",
        _scale("0 %", "100 %"),
        _tinted(report, kept[first:], first, "kept", most=1.0),
        figure(
            figures.bars(kept[first:], first, "Part that can be drawn from the state", 1.0),
            "The same as bars: the part of each token's input that can be drawn from the state again."
            + (
                " The first tokens stand out because nothing was read before them."
                if first == 0 and count > 1 and not selective and kept[0] > 2 * np.median(kept[1:])
                else ""
            ),
        ),
        '<p class="scale"><span><u class="read"></u>what the scan read</span> '
        '<span><u class="drawn"></u>what is drawn from the state</span></p>',
        figure(
            figures.panels(
                curves,
                close.start,
                "token of the text",
                f"Inputs of {len(curves)} channels, and what can be drawn from the state: "
                + "; ".join(name for name, _ in curves),
            ),
            f"{len(curves)} of {len(order):,} channels, the last {count - close.start} tokens. "
            "Where the lines part, the input is lost."
            + (
                " S4 begins as HiPPO-LegS, whose state is a projection of the past; training moves it, and this reads "
                "it as it is now."
                if seen.kind == "s4"
                else ""
            ),
        ),
    ]


def _kernels(report: Report) -> list[str]:
    seen, layer = report.seen, report.seen.row.layer
    if (K := seen.kernel) is None:
        return []
    K = K[:, : len(K[0]) - report.first]
    longest = seen.layers[layer].time_constants.max(axis=1)
    order = np.argsort(longest, kind="stable")
    chosen = dict.fromkeys(int(order[(len(order) - 1) * i // 3]) for i in range(4))
    return [
        f"<h2>Kernels of layer {layer}</h2>",
        "<p>What a channel puts out after a single input of 1, lag by lag: its output is the input convolved with "
        "this.</p>",
        figure(
            figures.panels(
                [(f"channel {i}", [("drawn", K[i])]) for i in chosen],
                0,
                "lag, tokens",
                f"Convolution kernels of channels {', '.join(map(str, chosen))}, over {K.shape[1]} lags.",
            ),
            f"{len(chosen)} channels, from the one that forgets soonest to the one that remembers longest; each by its "
            "own scale.",
        ),
    ]


def _taken(report: Report, word: str) -> list[str]:
    rows = [
        [
            str(index),
            ",  ".join(
                f"{visible(report.pieces[s])} {s} ({share:.0%})" for s, share in memory.most(_MOST)
            ),
        ]
        for index, memory in enumerate(report.seen.layers)
    ]
    return [
        "<h2>Layer by layer</h2>",
        table(
            f"What each layer read most for token {report.seen.row.token}, {word}: token, position, part.",
            ["layer", "tokens"],
            rows,
            words=True,
        ),
    ]


def _words() -> list[str]:
    """What the words of the page mean."""
    known = {
        "token": "What the model reads at once: a character, a byte or a piece of a word. Counted from 0.",
        "layer": "One block of the model, from 0, next to the text, to the last, next to the answer.",
        "scan": "What a layer does with its state: at each token it lets it fade, adds the input, and reads it out.",
        "state": "The numbers that a scan carries from token to token: all that it knows of the past.",
        "channel": "One of the signals that a layer reads, each with a state of its own.",
        "1/e": "37 %: after one horizon as much is left of a number in the state; after 4.6 horizons, 1 %.",
    }
    items = "".join(
        f"<dt>{escaped(each)}</dt><dd>{escaped(words)}</dd>" for each, words in known.items()
    )
    return ["<h2>Words of this page</h2>", f"<dl>{items}</dl>"]


def _scale(low: str, high: str) -> str:
    """What no tint and full tint mean."""
    return f'<p class="scale">{escaped(low)}<b></b>{escaped(high)}</p>'


def _tinted(
    report: Report,
    values: "np.ndarray",
    first: int,
    what: str,
    low: float = 0.0,
    most: float | None = None,
) -> str:
    """The text from token `first` on, each token tinted by its value; those that have none as they are.

    Where values begin at 0, a long beginning that has none to speak of is left away, and said to be.
    """
    span = (float(values.max()) if most is None else most) - low
    skipped = 0 if low else int(np.searchsorted(values.cumsum(), _FAINT * values.sum()))
    spans = []
    if skipped < _CLOSE:
        skipped = 0
    else:
        of = "the sum" + " over the tokens shown" * (first > 0)
        spans.append(
            f"<small>{skipped:,} tokens before, together {_FAINT:.0%} of {of} at most</small>\n"
        )
    start = first + skipped
    for position, piece in enumerate(report.pieces[start:], start=start):
        shown = escaped(piece).replace("\n", "<i>\u21b5</i>\n") or "<i>\u00b7</i>"
        now = ' class="now"' if position == report.seen.row.token else ""
        if position - first >= len(values):
            spans.append(f"<i>{shown}</i>")
            continue
        value = float(values[position - first])
        tint = _DARKEST * (value - low) / span if span > 0 else 0.0
        note = f"token {position}: {what} {value:.3g}"
        spans.append(f'<span{now} style="--a:{tint:.3f}" title="{note}">{shown}</span>')
    return f'<div class="text">{"".join(spans)}</div>'
