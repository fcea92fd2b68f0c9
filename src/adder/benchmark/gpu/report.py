"""The results as text of at most 80 columns."""

import textwrap
from collections.abc import Iterable
from itertools import chain
from typing import Any

from adder.benchmark.gpu.peers import NOT_INSTALLED
from adder.benchmark.gpu.results import KEY, Results, agrees, best, ratios, work_of
from adder.benchmark.report import WIDTH, left_out

NAME_WIDTH, LENGTH_WIDTH = 40, 19
LIMIT_WORDS = {
    "copy": ("copy, bytes read plus written", 1e12, "TB/s"),
    "exponentials": ("exponentials", 1e12, "T/s"),
    "bfloat16": ("matrix products, bfloat16", 1e12, "TFLOP/s"),
    "float32": ("matrix products, float32", 1e12, "TFLOP/s"),
}
PASS_WORDS = {"forward": "fwd", "both": "fwd+bwd"}
Row = dict[str, Any]


def page(results: Results) -> str:
    """Return the tables of everything measured so far."""
    parts = [
        _head(results),
        _limits(results.limits),
        _operators(results),
        _different(results.rows),
        _equal_runs(results.rows),
        _lengths(results),
        _models(results, "block", "block, bf16 autocast"),
        _models(results, "models", "models, bf16"),
        _left_out(results.left_out),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _head(results: Results) -> list[str]:
    facts = results.machine
    cuda = f", CUDA {facts['cuda']}" if facts.get("cuda") else ""
    end = "" if results.complete else ", interrupted: what was measured until then"
    words = (
        f"{facts.get('device', 'this device')}, torch {facts.get('torch', '')}{cuda}, "
        f"{facts.get('date', '')}; medians over random data, bf16 where nothing else is said, "
        f"{results.seconds:.0f} s in all{end}"
    )
    lines = textwrap.wrap(words, WIDTH)
    groups: dict[str, list[str]] = {}
    for name, state in results.peers.items():
        groups.setdefault(state, []).append(name)
    for state, names in groups.items():
        joined = ", ".join(names)
        known = state == NOT_INSTALLED or state.startswith("error: ")
        words = f"{joined}: {state}" if known else f"{joined} {state}"
        lines += textwrap.wrap(f"peer {words}", WIDTH, subsequent_indent="  ")
    return lines


def _limits(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = ["limits of this device"]
    for row in rows:
        words, unit, name = LIMIT_WORDS[row["limit"]]
        lines.append(f"  {words:<31}{row['rate'] / unit:>9.2f} {name:<9}{row['way'][:28]}")
    return lines


def _operators(results: Results) -> list[str]:
    """Ours, and under it everyone else at the same work."""
    rows = [row for row in results.of("operators") if "seconds" in row]
    if not rows:
        return []
    lines = [
        f"{'operators, ms':<{NAME_WIDTH}}{'floor':>7}{'called':>8}{'graph':>8}{'share':>8}{'adder':>8}"
    ]
    faster = {(work_of(row), row["peer"]): row["times_faster"] for row in ratios(results.rows)}
    for row in _grouped(rows):
        if row["subject"] == "adder":
            name = f"  {row['name']} {row['size']} {PASS_WORDS[row['pass']]}"
            by, share = _floor(row), _percent(row.get("of_floor"))
        else:
            name, by, share = f"    {row['subject']}", "", ""
        graph = _ms(row.get("graph_seconds"))
        times = _times(faster.get((work_of(row), row["subject"])))
        lines.append(
            f"{name:<{NAME_WIDTH}}{by:>7}{_ms(row['seconds']):>8}{graph:>8}{share:>8}{times:>8}"
        )
    return lines


def _grouped(rows: list[Row]) -> Iterable[Row]:
    """Rows of the same work one after the other, ours first."""
    works: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        works.setdefault(work_of(row), []).append(row)
    for group in works.values():
        yield from sorted(group, key=lambda row: row["subject"] != "adder")


def _different(rows: list[Row]) -> list[str]:
    """A line for each peer whose result is not ours."""
    found: list[str] = []
    for row in rows:
        if not agrees(row):
            words = (
                f"{row['subject']}: not compared at {row['name']} {row['size']}: its result "
                f"differs from adder's by {row['differs']:.2g} of it; rounding explains "
                f"{row['may_differ']:.2g}"
            )
            found.append(words)
    lines = [textwrap.wrap(each, WIDTH, subsequent_indent="  ") for each in dict.fromkeys(found)]
    return list(chain.from_iterable(lines))


def _equal_runs(rows: list[Row]) -> list[str]:
    lines: list[str] = []
    for row in rows:
        if "difference" in row:
            words = (
                f"{row['subject']}: {row['pass']} of {row['name']} {row['size']}, forward and "
                f"backward: largest difference {row['difference']:.2g}"
            )
            lines += textwrap.wrap(words, WIDTH, subsequent_indent="  ")
    return lines


def _lengths(results: Results) -> list[str]:
    """One line for each length, one column for each who was measured."""
    rows = results.of("lengths")
    if not rows:
        return []
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    titles = ["selective_scan" if name == "adder" else name for name in subjects]
    width = min(16, (WIDTH - LENGTH_WIDTH - 15) // len(subjects))
    head = "".join(f"{name:>{width}}" for name in titles)
    lines = [f"{'length, forward, ms':<{LENGTH_WIDTH}}{'floor':>8}{'share':>7}{head}"]
    for length in sorted({row["length"] for row in rows}):
        found = {row["subject"]: row for row in rows if row["length"] == length}
        ours = found.get("adder", {})
        cells = "".join(
            f"{_ms(best(found[name])) if name in found else '-':>{width}}" for name in subjects
        )
        floor, share = _floor(ours), _percent(ours.get("of_floor"))
        lines.append(f"  {length:<{LENGTH_WIDTH - 2},}{floor:>8}{share:>7}{cells}")
    return lines


def _models(results: Results, section: str, title: str) -> list[str]:
    rows = results.of(section)
    if not rows:
        return []
    faster = {(work_of(row), row["peer"]): row["times_faster"] for row in ratios(results.rows)}
    lines = [
        f"{title:<{NAME_WIDTH - 6}}{'floor':>8}{'ms':>9}{'share':>6}{'tokens/s':>10}{'MB':>7}{'adder':>6}"
    ]
    for row in _grouped(rows):
        name = f"  {row['name']} {row['size']}"
        if row["subject"] != "adder":
            name = ", ".join(filter(None, (f"    {row['subject']}", row.get("made_of"))))
        rate = f"{row['tokens_per_second']:,.0f}" if "tokens_per_second" in row else ""
        memory = "" if row.get("peak_bytes") is None else f"{row['peak_bytes'] / 1e6:.0f}"
        times = _times(faster.get((work_of(row), row["subject"])))
        lines.append(
            f"{name:<{NAME_WIDTH - 6}}{_floor(row):>8}{_ms(row['seconds']):>9}"
            f"{_percent(row.get('of_floor')):>6}{rate:>10}{memory:>7}{times:>6}"
        )
    return lines


def _left_out(rows: list[Row]) -> list[str]:
    return left_out(
        (
            row["subject"],
            row["why"],
            " ".join(row[name] for name in KEY if name != "section" and row.get(name)),
        )
        for row in rows
    )


def _floor(row: Row) -> str:
    return _ms(row.get("floor_seconds"))


def _ms(seconds: float | None) -> str:
    """Milliseconds with three digits that say something."""
    if seconds is None:
        return ""
    ms = 1e3 * seconds
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.3f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"
