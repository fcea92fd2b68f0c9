"""A comparison as a table for a terminal of 80 columns."""

import statistics

from adder.comparison.results import Results

WIDTH = 80
_COLUMN = 13
_ROUNDED = 0.9995  # from so much of a unit on, three digits are a whole one


def page(results: Results) -> str:
    """Everything that was measured, in lines of at most 80 characters."""
    head = [results.machine]
    if not results.complete:
        head.append("interrupted: what was measured until then")
    parts = [head, _models(results), *_quality(results), _training(results)]
    parts += [_generation(results), _exponents(results), _left_out(results)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def amount(size: float) -> str:
    """Bytes in the unit that fits, to three digits."""
    for unit in ("B", "KB", "MB"):
        if size < _ROUNDED * 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{number(size)} GB"


def number(value: float) -> str:
    """Tokens a second, or milliseconds, in few letters: a table and an axis show the same."""
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if value >= _ROUNDED * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def quality(results: Results, layer: str, task: str, unit: str) -> str:
    """The mean over the seeds, and half of the range where there are several."""
    values = results.quality_of(layer, task, unit)
    if not values:
        return "-"
    places, factor = (3, 1) if unit.startswith("bits") else (1, 100)
    mean = f"{factor * statistics.mean(values):.{places}f}"
    if len(values) == 1:
        return mean
    return f"{mean}±{factor * (max(values) - min(values)) / 2:.{places}f}"


def title(results: Results, task: str, unit: str) -> str:
    """What a figure of quality is called, with how many answers it is a share of."""
    if unit.startswith("bits"):
        return "text, bits per byte"
    words, _, length = unit.rpartition(" ")
    asked = results.asked(task, unit)
    return f"{task.replace('-', ' ')}, % of {asked:,} answers {words} {int(length):,}"


def spread(results: Results) -> str:
    """What ± means, where there are several seeds."""
    seeds = len(results.settings.get("seeds", ()))
    return f"± is half of the range of {seeds} seeds" if seeds > 1 else ""


def _row(first: str, cells: list[str]) -> str:
    return (f"{first:<{_FIRST}}" + "".join(f"{cell:>{_COLUMN}}" for cell in cells)).rstrip()


_FIRST = 15


def _groups(layers: list[str]) -> list[list[str]]:
    fit = (WIDTH - _FIRST) // _COLUMN
    return [layers[start : start + fit] for start in range(0, len(layers), fit)]


def _table(heading: str, results: Results, rows: list[tuple[str, dict[str, str]]]) -> list[str]:
    """A column for each model; below each other where they are more than a line holds."""
    lines = [heading]
    for layers in _groups(results.layers):
        lines.append(_row("", layers))
        lines += [_row(name, [cells.get(layer, "-") for layer in layers]) for name, cells in rows]
    return lines


def _models(results: Results) -> list[str]:
    rows = [
        ("width", {row["layer"]: str(row["d_model"]) for row in results.models}),
        ("parameters", {row["layer"]: f"{row['parameters']:,}" for row in results.models}),
        ("beside mamba", {row["layer"]: f"{row['difference']:+.1%}" for row in results.models}),
    ]
    return _table("models", results, rows)


def _quality(results: Results) -> list[list[str]]:
    tables = []
    for task, unit in results.questions():
        tokens = {
            row["tokens"] for row in results.quality if (row["task"], row["unit"]) == (task, unit)
        }
        cells = {layer: quality(results, layer, task, unit) for layer in results.layers}
        heading = f"{title(results, task, unit)}, after {max(tokens):,} tokens"
        tables.append(_table(heading, results, [("", cells)]))
    if tables and (words := spread(results)):
        tables.append([words])
    return tables


def _training(results: Results) -> list[str]:
    if not results.training:
        return []
    rows = []
    for length in sorted({row["length"] for row in results.training}):
        cells = {
            row["layer"]: number(length / row["seconds"])
            for row in results.training
            if row["length"] == length
        }
        rows.append((f"{length:,} tokens", cells))
    return _table("training: tokens per second of one row of so many", results, rows)


def _generation(results: Results) -> list[str]:
    if not results.generation:
        return []
    speed, memory = [], []
    for context in sorted({row["context"] for row in results.generation}):
        here = [row for row in results.generation if row["context"] == context]
        name = f"after {context:,}"
        speed.append((name, {row["layer"]: number(1 / row["seconds"]) for row in here}))
        memory.append((name, {row["layer"]: amount(row["bytes"]) for row in here}))
    return [
        *_table("generation: tokens per second after a context", results, speed),
        "",
        *_table("generation: the state of one stream", results, memory),
    ]


def _exponents(results: Results) -> list[str]:
    rows = []
    for name, key in (("training", "training"), ("a token", "token")):
        found = {
            row["layer"]: "-" if row[key] is None else f"{row[key]:.2f} ({row[key + '_theory']})"
            for row in results.exponents()
        }
        if any(cell != "-" for cell in found.values()):
            rows.append((name, found))
    if not rows:
        return []
    return _table("p of time ~ length^p over the upper half of lengths (theory)", results, rows)


def _left_out(results: Results) -> list[str]:
    if not results.left_out:
        return []
    import textwrap

    lines = ["left out"]
    for row in results.left_out:
        words = f"{row['part']}, {row['layer']}: {row['why']}"
        lines += textwrap.wrap(
            words, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
        )
    return lines
