"""A figure of what a token costs against the length of the text before it."""

from io import BytesIO
from typing import Any

from adder.benchmark.contestants import threads_words
from adder.benchmark.results import Results
from adder.errors import UsageError

Row = dict[str, Any]
COLORS = {  # of Okabe and Ito: told apart by every kind of sight
    "adder": "#0072b2",
    "transformers": "#d55e00",
    "mambapy": "#009e73",
    "loop": "#cc79a7",
    "llama.cpp": "#000000",
}
STYLES = {
    "float32": ("-", "o"),
    "bfloat16": ("--", "s"),
    "int8": ("-.", "^"),
    "int4": (":", "D"),
}
PANELS = (
    ("prefill", "milliseconds", "reading: ms per token"),
    ("decode", "milliseconds", "writing: ms per token"),
    ("prefill", "megabytes", "reading: MB held, weights included"),
)


def picture(results: Results) -> bytes:
    """Return a PNG: time per token of reading and writing, and memory, against length.

    Raises:
        UsageError: nothing was measured that could be drawn.
    """
    from matplotlib.figure import Figure

    threads = max((row["threads"] for row in results.models), default=0)
    rows = [row for row in results.models if row["batch"] == 1 and row["threads"] == threads]
    rows = [row for row in rows if row["task"] in ("prefill", "decode")]
    if not rows:
        raise UsageError("--figure: neither reading nor writing was measured, nothing can be drawn")
    contexts = sorted({row["context"] for row in rows})
    figure = Figure(figsize=(13, 4.6), dpi=110, layout="constrained")
    for axes, (task, unit, title) in zip(figure.subplots(1, 3), PANELS, strict=True):
        for (subject, precision), points in _lines(rows, task, unit).items():
            line, marker = STYLES.get(points[0][2], ("-", "x"))
            axes.plot(
                [x for x, _, _ in points],
                [y for _, y, _ in points],
                color=COLORS.get(subject, "#666666"),
                linestyle=line,
                marker=marker,
                markersize=4,
                label=f"{subject} {precision}",
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(contexts, [short_length(each) for each in contexts])
        axes.yaxis.set_major_formatter(plain_labels())
        axes.yaxis.set_minor_formatter(plain_labels())
        axes.set_xlabel("tokens before" if task == "decode" else "tokens read")
        axes.set_title(title)
        axes.grid(alpha=0.3, which="both")
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize="small")
    size = results.plan["model_size"]
    figure.suptitle(f"Mamba, {size}, batch 1, {threads_words(threads)}; lower is better")
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def plain_labels() -> Any:
    """Labels where a logarithmic axis has them, as 0.6 and not 6e-01."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    return Plain()


def short_length(tokens: int) -> str:
    """As lengths are said: 64, 2K, 64K."""
    return f"{tokens // 1024}K" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)


def _lines(
    rows: list[Row], task: str, unit: str
) -> dict[tuple[str, str], list[tuple[int, float, str]]]:
    """(subject, precision) -> (length, value, comparable precision), from short to long."""
    lines: dict[tuple[str, str], list[tuple[int, float, str]]] = {}
    for row in rows:
        if row["task"] != task or (unit == "megabytes" and not row["peak_bytes"]):
            continue
        value = (
            1e3 / row["tokens_per_second"] if unit == "milliseconds" else row["peak_bytes"] / 1e6
        )
        lines.setdefault((row["subject"], row["precision"]), []).append(
            (row["context"], value, row["comparable"])
        )
    return lines
