"""The associative addition as a tree, and what the scan keeps for its backward pass."""

from fractions import Fraction
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure as Picture
from matplotlib.patches import Rectangle

import adder
from adder.ops.selective_scan.portable import CHUNK
from adder.ops.selective_scan.reference import selective_scan_reference
from figures.style import BLUE, GREY, INK, ORANGE, PALE, RED, Figure, note

HALF = Fraction(1, 2)
DECAYS = (Fraction(1), HALF, Fraction(1), HALF, HALF, Fraction(1), HALF, HALF)
INPUTS = (4, 2, 2, 1, 6, -2, 1, 3)

Pair = tuple[Fraction, Fraction]


class Rounds(NamedTuple):
    """Pairs after each round, (rounds + 1, 8); and who was added to whom in it: (from, to)."""

    pairs: list[list[Pair]]
    added: list[list[tuple[int, int]]]


def add_up(plan: list[list[tuple[int, int]]]) -> Rounds:
    """Run a plan of additions from the eight pairs: in one round all read what the round before left."""
    pairs = [[(a, Fraction(x)) for a, x in zip(DECAYS, INPUTS, strict=True)]]
    for additions in plan:
        before = pairs[-1]
        after = list(before)
        for start, end in additions:
            (a1, x1), (a2, x2) = before[start], before[end]
            after[end] = (a2 * a1, a2 * x1 + x2)
        pairs.append(after)
    return Rounds(pairs, plan)


def tree_data() -> dict[str, Any]:
    """The running sums of eight pairs up and down a tree, and by doubling; and the recurrence."""
    up = [[(i, i + k) for i in range(k - 1, 8 - k, 2 * k)] for k in (1, 2, 4)]
    down = [[(i, i + k) for i in range(2 * k - 1, 8 - k, 2 * k)] for k in (2, 1)]
    doubling = [[(i, i + k) for i in range(8 - k)] for k in (1, 2, 4)]
    a, x = (torch.tensor([float(v) for v in each])[None] for each in (DECAYS, INPUTS))
    return {
        "tree": add_up(up + down),
        "doubling": add_up(doubling),
        "h": adder.ops.linear_scan(a, x)[0][0],
    }


def draw_tree(picture: Picture, data: dict[str, Any]) -> None:
    """Time runs to the right, rounds downwards; a node that reaches back to the first step is blue."""
    plots = picture.subplots(2, 1, height_ratios=[6, 4.2])
    names = ("up and down the tree", "doubling")
    for plot, rounds, name in zip(plots, (data["tree"], data["doubling"]), names, strict=True):
        count = sum(len(each) for each in rounds.added)
        plot.set_title(f"{name}: {len(rounds.added)} rounds, {count} additions")
        done = "blue: the sum from the first step on"
        plot.set_title(done, loc="right", fontsize=8, color=BLUE)
        plot.axis("off")
        plot.set(xlim=(-1.15, 7.55), ylim=(len(rounds.added) + 0.42, -0.42))
        reach = list(range(8))  # the first step that each node holds
        for row, pairs in enumerate(rounds.pairs):
            before = list(reach)
            into = {end: start for start, end in rounds.added[row - 1]} if row else {}
            for end, start in into.items():
                reach[end] = before[start]
                plot.plot((start, end), (row - 1, row), color=ORANGE, linewidth=1.3, zorder=1)
                plot.plot(start, row - 1, "o", color=ORANGE, markersize=4, zorder=1)
            for step, (a, x) in enumerate(pairs):
                if row:
                    plot.plot((step, step), (row - 1, row), color="#C8C8C8", linewidth=1, zorder=0)
                whole, new = reach[step] == 0, row == 0 or step in into
                last = row == len(rounds.added)
                if not new and not last:
                    continue
                color = BLUE if whole else INK
                box = {"boxstyle": "round,pad=0.28", "facecolor": "#DCEBF5" if whole else PALE}
                box |= {"edgecolor": color if new else "none", "linewidth": 0.7}
                text = f"{a}, {float(x):g}"
                options = {"ha": "center", "va": "center", "fontsize": 7.5, "color": color}
                plot.text(step, row, text, bbox=box, zorder=2, **options)
        plot.text(-1.15, 0, "a, x", va="center", fontsize=8, color=GREY)
        plot.text(-1.15, len(rounds.added), "product, h", va="center", fontsize=8, color=BLUE)
        for row in range(1, len(rounds.added)):
            label = f"round {row}"
            plot.text(-1.15, row, label, va="center", fontsize=8, color=GREY)


def kept_data() -> dict[str, Any]:
    """Bytes that autograd keeps beside the inputs: for the reference and for the operator, by length."""
    lengths, d, n = [32, 64, 128, 256, 512, 1024], 16, 16
    kept: dict[str, list[int]] = {"reference": [], "operator": []}
    for length in lengths:
        sizes = ((1, length, d), (1, length, d), (d, n), (1, length, n), (1, length, n))
        u, delta, A, B, C = (torch.rand(*size) for size in sizes)
        inputs = [each.requires_grad_() for each in (u, delta, -A, B, C)]
        scans = (selective_scan_reference, adder.ops.selective_scan)
        for name, scan in zip(kept, scans, strict=True):
            storages: dict[int, int] = {}

            def pack(each: torch.Tensor, to: dict[int, int] = storages) -> torch.Tensor:
                to[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
                return each

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda each: each):
                outputs = scan(*inputs)
            kept[name].append(sum(storages.values()) - sum(each.nbytes for each in inputs))
            del outputs
    return {"lengths": lengths, "states": [4 * length * d * n for length in lengths], **kept}


def draw_kept(picture: Picture, data: dict[str, Any]) -> None:
    """Chunks on the left, bytes on the right."""
    left, right = picture.subplots(1, 2, width_ratios=[1.45, 1])
    left.axis("off")
    left.set(xlim=(-0.2, 24.4), ylim=(-1.75, 5.1))
    left.set_title(f"chunks of {CHUNK} steps (here 6 are drawn)")
    for top, again in ((3.2, None), (0.2, 2)):
        for chunk in range(4):
            at = 6 * chunk
            face = "#FBEBD3" if chunk == again else PALE
            left.add_patch(Rectangle((at + 0.15, top - 0.6), 5.7, 1.2, color=face, linewidth=0))
            left.plot(at + 0.15, top, "o", color=BLUE, markersize=7, clip_on=False)
            shown = again is None or chunk == again
            inside = [at + 1 + k for k in range(5)]
            if shown:
                color = ORANGE if chunk == again else GREY
                left.plot(inside, [top] * 5, "o", color=color, markersize=4, fillstyle="none")
    arrow = {"arrowstyle": "->", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    left.annotate("", (23.8, 4.15), (0.2, 4.15), arrowprops={**arrow, "color": GREY})
    note(left, 0.2, 4.4, "forward: only the blue states are kept")
    left.annotate("", (17.8, 1.15), (12.2, 1.15), arrowprops={**arrow, "color": ORANGE})
    note(left, 12.2, 1.4, "computed again", color="#8A5A00")
    left.annotate("", (12.2, -0.75), (17.8, -0.75), arrowprops={**arrow, "color": RED})
    note(left, 12.2, -1.4, "gradients walk back", color=RED)
    note(left, 0.2, -1.4, "backward, chunk by chunk")

    lengths = data["lengths"]
    right.loglog(lengths, data["reference"], "o-", color=RED, markersize=3.6)
    right.loglog(lengths, data["states"], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    right.loglog(lengths, data["operator"], "o-", color=BLUE, markersize=3.6)
    right.set(xlabel="length, steps", title="bytes kept for the backward pass")
    right.set(ylim=(6e2, 6e6), xlim=(26, 1300))
    note(right, 330, 9e5, "reference", color=RED, ha="right")
    note(right, 1250, 2.9e5, "all states", color=GREY, ha="right")
    note(right, 210, 1.8e3, "selective_scan", color=BLUE)


FIGURES = (
    Figure("tree", (7.2, 5.2), tree_data, draw_tree),
    Figure("kept", (7.2, 2.9), kept_data, draw_kept),
)
