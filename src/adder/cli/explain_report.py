"""What `adder explain` prints: a table of 80 columns, what its words mean, and the text where it can be tinted."""

import sys
import textwrap
from typing import TYPE_CHECKING

from adder.cli.explain_page import few_tokens, numbers, visible
from adder.webpage import prints

if TYPE_CHECKING:
    from rich.text import Text

    from adder.cli.explain_page import Report

WIDTH = 80
_MOST = 3
_BORDER = 3
# From little to much, behind black letters; the least is not tinted.
_TINTS = ("", "black on #ffd9b8", "black on #ffb071", "black on #f0781e")


def show(report: "Report", has_page: bool) -> None:
    """Print everything; where it can draw no tints, a hint at the page, unless there is one."""
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    seen, at = report.seen, report.seen.row.token
    console = Console(width=WIDTH, highlight=False)
    print(f"{seen.kind}, {len(seen.layers)} layers, read {report.read} of {report.name}")
    table = Table(box=box.SIMPLE if _encodes("\u2500") else box.ASCII, width=WIDTH, pad_edge=False)
    heads, rows = numbers(report)
    for heading in heads:
        table.add_column(heading, justify="right", no_wrap=True)
    word = visible(report.pieces[at])
    table.add_column(
        Text(f"most taken in at {at}, {word}"), overflow="ellipsis", no_wrap=True, ratio=1
    )
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    room = WIDTH - sum(widths) - _BORDER * (len(widths) + 1)
    for cells, memory in zip(rows, seen.layers, strict=True):
        most = [f"{visible(report.pieces[s])} {s} {share:.0%}" for s, share in memory.most(_MOST)]
        while len(most) > 1 and cell_len("  ".join(most)) > room:
            most.pop()
        table.add_row(*cells, Text("  ".join(most)))
    console.print(table)
    for line in _legend(report):
        print(textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False))
    if console.color_system is not None and not console.no_color:
        print()
        console.print(_tinted(report))
    elif not has_page:
        print("\nthe text tinted token by token needs a terminal with colours; --html draws it")


def _legend(report: "Report") -> list[str]:
    seen = report.seen
    lines = [
        "to 1/e, to 1 %: horizons, tokens until so much of a number in the state is left; medians"
        + (", and upper bounds: the low-rank part of S4 fades faster" if seen.kind == "s4" else "")
    ]
    if seen.layers[0].steps is not None:
        lines.append(
            "Delta: the step of a token, mean over tokens and channels; a long one takes the token in, a short one "
            "passes over it"
        )
    else:
        lines.append("dt: the step, mean over channels; the same for every token")
    if seen.recall is not None:
        lines.append(
            f"held: how many tokens' inputs can be drawn from the state after token {seen.row.token}, of "
            f"{seen.recall.state.shape[1]} at most"
        )
    lines.append(
        "taken in: token, position, its part in what the layer's scan puts out, without the skip D u[t]"
    )
    if report.longer:
        lines.append(few_tokens(report))
    return lines


def _tinted(report: "Report") -> "Text":
    """The text: tinted by Delta, or, where all steps are the same, by how much of each token is held."""
    from rich.text import Text

    seen, layer = report.seen, report.seen.row.layer
    memory = seen.layers[layer]
    if memory.steps is not None:
        values, low, high, what = memory.steps, memory.steps.min(), memory.steps.max(), "Delta"
    elif memory.kept is not None:
        values, low, high, what = memory.kept, 0.0, 1.0, "part held"
    else:
        return Text()
    drawn = Text(f"layer {layer}, {what}: {low:.3g} ")
    for tint in _TINTS:
        drawn.append("  ", tint)
    drawn.append(f" {high:.3g}\n")
    for position, piece in enumerate(report.pieces[report.first :], start=report.first):
        shown = "".join(_shown(c) for c in piece)
        if position >= len(values):
            drawn.append(shown, "dim")
            continue
        part = (float(values[position]) - float(low)) / (float(high - low) or 1.0)
        tint = _TINTS[min(len(_TINTS) - 1, int(len(_TINTS) * part))]
        drawn.append(shown, tint + " underline" * (position == seen.row.token))
    return drawn


def _shown(character: str) -> str:
    if character == "\n":
        return "\u21b5\n" if _encodes("\u21b5") else "\n"
    return character if (prints(character) or character == "\t") and _encodes(character) else "?"


def _encodes(character: str) -> bool:
    """Whether standard output can hold it."""
    try:
        character.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True
