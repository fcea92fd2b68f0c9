"""How the benchmarks measure: medians of interleaved runs, and the machine they ran on."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def seconds(
    subjects: Mapping[str, Callable[[], object]], *, repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Every time of each subject. They take turns, so a busy moment hits all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(warm_up + repeats):
        for name, subject in subjects.items():
            start = time.perf_counter()
            subject()
            if turn >= warm_up:
                times[name].append(time.perf_counter() - start)
    return times


def median_seconds(
    subjects: Mapping[str, Callable[[], object]], *, repeats: int, warm_up: int = 1
) -> dict[str, float]:
    """The median time of each subject."""
    times = seconds(subjects, repeats=repeats, warm_up=warm_up)
    return {name: statistics.median(values) for name, values in times.items()}


def machine() -> str:
    """The machine in words, for beside the figures."""
    import torch

    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    name = capabilities.get("cpu_name") or platform.machine()
    return (
        f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, "
        f"torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )
