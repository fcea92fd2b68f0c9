"""What does a sample cost as the sequence grows, read as a convolution and as a recurrence?

    python benchmarks/length.py [--layer s4d] [--channels 16] [--most 1048576] [--json] [--figure PATH]

One S4D (or S4) layer reads 1K to 1M samples. As a convolution it sees all of them at once: time n log n, memory n. As a
recurrence it reads pieces of 4096 and keeps a state: time n, memory constant. Memory is the most that the process
held above what it held before, inputs and outputs of the convolution included; each point is a process of its own.
The exponents are the slopes of log time against log length, from 16K on.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from adder import S4, S4D
from adder.benchmark.timing import machine

PIECE = 4096
VIEWS = ("convolution", "recurrence")


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds and megabytes of one pass over one length in one view."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    layer = {"s4": S4, "s4d": S4D}[options.layer](options.channels, 64)
    length, piece = options.length, torch.randn(1, min(PIECE, options.length), options.channels)

    def convolution() -> None:
        layer(torch.randn(1, length, options.channels))

    def recurrence() -> None:
        state = layer.initial_state(1)
        for _ in range(length // piece.shape[1]):
            _, state = layer(piece, state)

    run = convolution if options.view == "convolution" else recurrence
    layer(piece[:, :64], layer.initial_state(1))  # what is loaded once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(2 if length > 200_000 else 4):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": statistics.median(times[1:]), "megabytes": (peak - before) / 1024}


def exponent(points: list[dict[str, Any]]) -> float:
    """The slope of log seconds against log length, by least squares, from 16K samples on."""
    pairs = [
        (math.log(p["length"]), math.log(p["seconds"])) for p in points if p["length"] >= 16384
    ]
    if len(pairs) < 2:
        return math.nan
    x, y = zip(*pairs, strict=True)
    return statistics.linear_regression(x, y).slope


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Two panels, time and memory, against length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, key, unit in zip(panels, ("seconds", "megabytes"), ("s", "MB"), strict=True):
        for view, color, marker in zip(VIEWS, ("#0072b2", "#d55e00"), ("o", "s"), strict=True):
            points = [row for row in rows if row["view"] == view]
            label = f"{view}: time ~ n^{exponent(points):.2f}" if key == "seconds" else view
            values = [max(row[key], 0.1 if key == "megabytes" else 0) for row in points]
            axes.plot(
                [row["length"] for row in points], values, color=color, marker=marker, label=label
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("samples")
        axes.set_title(f"{'time' if key == 'seconds' else 'memory above the model'} ({unit})")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost against length, 1K to 1M samples.")
    parser.add_argument("--layer", choices=("s4", "s4d"), default="s4d")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most", type=int, default=2**20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--view", choices=VIEWS, help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.view:
        print(json.dumps(measure(options)))
        return
    rows, length = [], 1024
    while length <= options.most:
        for view in VIEWS:
            command = [sys.executable, *sys.argv, "--view", view, "--length", str(length)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append({"view": view, "length": length, **json.loads(done.stdout)})
        length *= 4
    exponents = {view: exponent([row for row in rows if row["view"] == view]) for view in VIEWS}
    title = (
        f"{options.layer.upper()}, {options.channels} channels, n = 64, {options.threads} threads"
    )
    if options.figure:
        draw(rows, title, options.figure)
    if options.json:
        print(json.dumps({"machine": machine(), "rows": rows, "exponents": exponents}))
        return
    print(f"{machine()}: {title}")
    print(f"{'samples':>10}{'convolution':>14}{'':12}{'recurrence':>14}")
    for whole, pieces in zip(rows[::2], rows[1::2], strict=True):
        print(
            f"{whole['length']:10}{1000 * whole['seconds']:11.1f} ms{whole['megabytes']:9.0f} MB"
            f"{1000 * pieces['seconds']:11.1f} ms{pieces['megabytes']:9.0f} MB"
        )
    print("exponents: " + ", ".join(f"{view} {value:.2f}" for view, value in exponents.items()))


if __name__ == "__main__":
    main()
