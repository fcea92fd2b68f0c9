"""A figure: the scan and attention against length, and how near everything is to its floor."""

from io import BytesIO
from typing import Any

from adder.benchmark.figure import plain_labels, short_length
from adder.benchmark.gpu.results import Results, best
from adder.errors import UsageError

Row = dict[str, Any]
COLORS = {"adder": "#0072b2", "attention": "#d55e00", "mamba_ssm": "#009e73"}
FLOOR_COLOR = "#000000"
BARS = {"operators": "#0072b2", "block": "#e69f00", "models": "#56b4e9"}


def picture(results: Results) -> bytes:
    """Return a PNG: time against length, and the share of its floor that each row of adder reaches.

    Raises:
        UsageError: nothing was measured that could be drawn.
    """
    from matplotlib.figure import Figure

    lengths = results.of("lengths")
    bars = [row for row in results.rows if row["subject"] == "adder" and "of_floor" in row]
    bars = [row for row in bars if row["section"] in BARS]
    panels = [bool(lengths), bool(bars)]
    if not any(panels):
        raise UsageError("--figure: nothing was measured that could be drawn")
    height = max(4.6, 0.17 * len(bars) + 1.5)
    figure = Figure(figsize=(6.5 * sum(panels), height), dpi=110, layout="constrained")
    axes = list(figure.subplots(1, sum(panels), squeeze=False)[0])
    if lengths:
        _against_length(axes.pop(0), lengths)
    if bars:
        _shares(axes.pop(0), bars)
    figure.suptitle(f"{results.machine.get('device', '')}, bf16, {results.machine.get('date', '')}")
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _against_length(axes: Any, rows: list[Row]) -> None:
    for subject in dict.fromkeys(row["subject"] for row in rows):
        points = sorted((r["length"], 1e3 * best(r)) for r in rows if r["subject"] == subject)
        label = "selective_scan" if subject == "adder" else subject
        axes.plot(*zip(*points, strict=True), color=COLORS.get(subject), marker="o", label=label)
    floors = [(row["length"], row) for row in rows if row["subject"] == "adder"]
    points = sorted((l, 1e3 * row["floor_seconds"]) for l, row in floors if "floor_seconds" in row)
    if points:
        axes.plot(*zip(*points, strict=True), color=FLOOR_COLOR, linestyle=":", label="its floor")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    lengths = sorted({row["length"] for row in rows})
    axes.set_xticks(lengths, [short_length(each) for each in lengths])
    axes.yaxis.set_major_formatter(plain_labels())
    axes.yaxis.set_minor_formatter(plain_labels())
    axes.set_xlabel("length, one sequence")
    axes.set_title("forward, ms; lower is better")
    axes.grid(alpha=0.3, which="both")
    axes.legend()


def _shares(axes: Any, rows: list[Row]) -> None:
    passes = {"both": " fwd+bwd", "forward": " fwd"}
    names = [
        f"{row['name']} {row['size']}"
        + (passes.get(row["pass"], "") if row["section"] == "operators" else "")
        for row in rows
    ]
    places = range(len(rows))
    colors = [BARS[row["section"]] for row in rows]
    axes.barh(places, [100 * row["of_floor"] for row in rows], color=colors)
    axes.set_yticks(places, names, fontsize=6)
    axes.invert_yaxis()
    axes.set_xlim(left=0)  # more than 100 where other units than the ceiling's do the work
    axes.set_title("% of the floor reached")
    axes.grid(alpha=0.3, axis="x")
