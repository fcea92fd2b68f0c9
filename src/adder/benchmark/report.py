"""The results as text of at most 80 columns."""

import textwrap
from collections.abc import Iterable
from typing import Any

from adder.benchmark.contestants import threads_words
from adder.benchmark.operators import limit
from adder.benchmark.results import Results, against_length, ratios, same_task

WIDTH = 80
LIMIT_NAMES = {
    "bandwidth": "read memory, GB/s",
    "float32": "multiply float32, GFLOP/s",
    "bfloat16": "multiply bfloat16, GFLOP/s",
}
Row = dict[str, Any]


def page(results: Results) -> str:
    """Return the tables of everything measured so far."""
    parts = [
        _head(results),
        _limits(results.limits),
        _operators(results),
        *_models(results),
        _lengths(results.models),
        _left_out(results.left_out),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _head(results: Results) -> list[str]:
    plan, model = results.plan, results.plan["config"]
    end = "" if results.complete else ", interrupted: what was measured until then"
    words = (
        f"{results.machine.get('machine', 'this machine')}; {plan['model_size']} model: "
        f"{model['n_layer']} layers, d_model {model['d_model']}, {model['vocab_size']:,} tokens, "
        f"random weights; medians of {plan['rounds']} rounds, {results.seconds:.0f} s in all{end}"
    )
    return textwrap.wrap(words, WIDTH)


def _limits(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = [f"{'limits of this machine':<29}{'threads':>8}{'best':>9}  by, and the other ways"]
    for row in rows:
        others = [
            f"{way} {rate / 1e9:.1f}"
            for way, rate in sorted(row["rates"].items(), key=lambda each: -each[1])
            if way != row["way"]
        ]
        ways = "; ".join([row["way"], *others])
        start = f"  {LIMIT_NAMES[row['limit']]:<27}{row['threads']:>8}{row['rate'] / 1e9:>9.1f}  "
        lines += textwrap.wrap(
            ways, WIDTH, initial_indent=start, subsequent_indent=" " * len(start)
        )
    return lines


def _operators(results: Results) -> list[str]:
    rows = results.operators
    if not rows:
        return []
    threads = rows[0]["threads"]
    title = f"operators, {threads_words(threads)}"
    lines = [f"{title:<28}{'pass':<18}{'ms':>8}{'reference':>10}{'faster':>9}{'limit':>6}"]
    bandwidth = results.limit("bandwidth", threads)
    peak = results.limit("float32", threads)
    for row in rows:
        share = limit(row, bandwidth, peak) / row["alone_seconds"] if bandwidth else None
        lines.append(
            f"  {row['operator']:<26}{row['pass']:<18}{1e3 * row['seconds']:>8.2f}"
            f"{1e3 * row['reference_seconds']:>10.1f}"
            f"{row['reference_seconds'] / row['seconds']:>8.1f}x{_percent(share):>6}"
        )
    return lines


def _models(results: Results) -> Iterable[list[str]]:
    """A table for each task: all who took part, and how many times faster adder was than each."""
    faster = {
        (same_task(row), row["peer"], row["peer_precision"]): row for row in ratios(results.models)
    }
    tasks: dict[tuple[Any, ...], list[Row]] = {}
    for row in results.models:
        tasks.setdefault(same_task(row), []).append(row)
    for task, rows in tasks.items():
        lines = [
            f"{_task_words(*task):<31}{'tokens/s':>9}{'low - high':>17}{'limit':>7}{'MB':>7}{'adder':>9}"
        ]
        for row in rows:
            ratio = faster.get((task, row["subject"], row["precision"]))
            spread = f"{_rate(row['low'])} - {_rate(row['high'])}"
            memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
            times = f"{_rate(ratio['times_faster'])}x" if ratio else ""
            name = f"{row['subject']} {row['precision']}"
            lines.append(
                f"  {name:<29}{_rate(row['tokens_per_second']):>9}{spread:>17}"
                f"{_percent(row['of_limit']):>7}{memory:>7}{times:>9}"
            )
        yield lines


def _task_words(kind: str, context: int, batch: int, threads: int) -> str:
    what = {
        "prefill": f"read {context}",
        "decode": f"write after {context}",
        "train": f"train on {context}",
    }[kind]
    what = f"write {batch} streams" if batch > 1 else what
    return f"{what}, {threads_words(threads)}"


def _lengths(models: list[Row]) -> list[str]:
    lines = []
    for row in against_length(models):
        memory = "" if row["memory"] is None else f", memory {row['memory']:.2f}"
        lines.append(
            f"adder {row['precision']}, a token written after {row['to']:,} over one after "
            f"{row['from']}: time {row['time']:.2f}{memory}"
        )
    return [part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent="  ")]


def _left_out(rows: list[Row]) -> list[str]:
    return left_out(
        (
            f"{row['subject']} {row['precision']}".strip(),
            row["why"],
            _task_words(*same_task(row)) if "task" in row else "",
        )
        for row in rows
    )


def left_out(entries: Iterable[tuple[str, str, str]]) -> list[str]:
    """One entry for each reason, of (who, why, in what)."""
    groups: dict[tuple[str, str], list[str]] = {}
    for who, why, what in entries:
        groups.setdefault((who, why), []).append(what)
    if not groups:
        return []
    lines = ["left out"]
    for (who, why), works in groups.items():
        named = "; ".join(dict.fromkeys(what for what in works if what))
        words = f"{who}: {why}" + (f" ({named})" if named else "")
        lines += textwrap.wrap(
            words,
            WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
            break_on_hyphens=False,
        )
    return lines


def _rate(value: float) -> str:
    """Three digits at least, and none that says nothing."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
