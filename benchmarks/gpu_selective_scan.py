"""How near selective_scan's Triton kernels are to what a GPU can do: `python benchmarks/gpu_selective_scan.py`.

First the two ceilings of this card, bytes copied and exponentials per second; then the scan, forward and with its
backward pass, at the shapes of benchmarks/notes/gpu_selective_scan.md: bf16 in and out, D, z, delta_bias, softplus.
Medians of device events over random data, in turn over copies of the inputs that together do not fit the cache;
"graph" is one CUDA graph of the same call, which leaves out what launching costs. Prints a table and writes JSON.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

from adder.ops import selective_scan

SHAPES = [(8, 2048, 4096), (8, 2048, 1536), (32, 2048, 1536), (1, 2048, 4096)]
# Milliseconds of mamba_ssm 2.3.2 on an H200: forward, forward and backward.
MAMBA = {
    (8, 2048, 4096): (1.168, 5.69),
    (8, 2048, 1536): (0.451, 2.20),
    (32, 2048, 1536): (1.738, 8.51),
    (1, 2048, 4096): (0.163, 0.84),
}
LENGTHS = [2**k for k in range(9, 20)]
MAMBA_LENGTHS = [0.037, 0.026, 0.046, 0.086, 0.165, 0.347, 0.678, 1.417, 2.81, 5.45, 10.85]
CACHE = 60 << 20
STATES = 16


def median(calls: list[Callable[[], Any]], seconds: float = 0.3) -> float:
    """Median time in ms of a call, the calls taken in turn."""
    for call in calls[:2] * 2:
        call()
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for call in calls:
        call()
    end.record()
    torch.cuda.synchronize()
    rounds = max(10, min(300, int(seconds * 1e3 / (begin.elapsed_time(end) / len(calls)))))
    pairs = []
    for k in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        calls[k % len(calls)]()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs)


def graphed(calls: list[Callable[[], Any]]) -> list[Callable[[], Any]]:
    """The calls as CUDA graphs."""
    replays = []
    for call in calls:
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        replays.append(graph.replay)
    return replays


@triton.jit
def exponentials(out, rounds, BLOCK: tl.constexpr):
    """Eight independent chains of x <- 2^-x in each thread."""
    x = tl.arange(0, BLOCK).to(tl.float32) / BLOCK
    for _ in range(rounds):
        x = tl.exp2(-x)
    tl.store(out + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), x)


def ceilings() -> tuple[float, float]:
    """Bytes read and written, and exponentials, each per second."""
    a = torch.randn(1 << 29, device="cuda")
    b = torch.empty_like(a)
    copied = 2 * a.numel() * 4 / (median([lambda: b.copy_(a)]) / 1e3)
    programs, rounds = 132 * 16, 2048
    out = torch.empty(programs * 1024, device="cuda")
    ms = median([lambda: exponentials[(programs,)](out, rounds, BLOCK=1024, num_warps=4)])
    return copied, programs * 1024 * rounds / (ms / 1e3)


def draw(b: int, l: int, d: int, n: int = STATES, *, gradients: bool = False) -> dict[str, Any]:
    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        x = torch.randn(shape, device="cuda").to(dtype)
        return x.requires_grad_() if gradients else x

    inputs: dict[str, Any] = {name: normal(b, l, d) for name in ("u", "delta", "z")}
    inputs |= {name: normal(b, l, n) for name in ("B", "C")}
    inputs |= {name: normal(d, dtype=torch.float32) for name in ("D", "delta_bias")}
    A = -torch.rand(d, n, device="cuda") * n
    return {**inputs, "A": A.requires_grad_() if gradients else A, "delta_softplus": True}


def both_passes(inputs: dict[str, Any], dy: torch.Tensor) -> Callable[[], Any]:
    leaves = [each for each in inputs.values() if isinstance(each, torch.Tensor)]

    def call() -> Any:
        y, _ = selective_scan(**inputs)
        return torch.autograd.grad(y, leaves, dy)

    return call


def measure(
    b: int, l: int, d: int, rates: tuple[float, float], *, backward: bool
) -> dict[str, Any]:
    copies = max(2, min(8, 2 * CACHE // (4 * b * l * d * 2) + 1))
    if b * l * d > 1 << 27:
        copies = 1
    floor = 1e3 * max(b * l * d * STATES / rates[1], 4 * b * l * d * 2 / rates[0])
    sets = [draw(b, l, d) for _ in range(copies)]
    with torch.no_grad():
        calls: list[Callable[[], Any]] = [lambda s=s: selective_scan(**s) for s in sets]  # type: ignore[misc]
        row: dict[str, Any] = {
            "shape": (b, l, d), "floor": floor, "forward": median(calls),
            "forward graph": median(graphed(calls)),
        }  # fmt: skip
    if backward:
        sets = [draw(b, l, d, gradients=True) for _ in range(copies)]
        both = [both_passes(s, torch.randn_like(s["u"])) for s in sets]
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        row["both"] = median(both)
        row["peak MB"] = (torch.cuda.max_memory_allocated() - before) / 1e6
        out = selective_scan(**sets[0])
        row["kept MB"] = (torch.cuda.memory_allocated() - before - out[0].numel() * 2) / 1e6
        del out  # or its graph stays, and with it nodes that a capture cannot use
        row["both graph"] = median(graphed(both))
    return row


def largest_difference(runs: int = 5) -> float:
    """Between the results of several runs of one call, forward and backward."""
    inputs = draw(4, 1000, 1000, gradients=True)
    call = both_passes(inputs, torch.randn_like(inputs["u"]))
    first = [*call(), selective_scan(**inputs)[0]]
    worst = 0.0
    for _ in range(runs - 1):
        again = [*call(), selective_scan(**inputs)[0]]
        pairs = zip(first, again, strict=True)
        worst = max(worst, *((a.float() - b.float()).abs().max().item() for a, b in pairs))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write every figure")
    parser.add_argument("--quick", action="store_true", help="the four shapes alone")
    options = parser.parse_args()
    rates = ceilings()
    print(
        f"{torch.cuda.get_device_name()}: copy {rates[0] / 1e12:.2f} TB/s, {rates[1] / 1e12:.2f} T exponentials/s"
    )
    print(
        "b x l x d          floor  forward (graph)  of floor | both   (graph)  | mamba_ssm on an H200, and ratios"
    )
    rows = []
    for shape in SHAPES:
        row = measure(*shape, rates, backward=True)
        one, two = MAMBA[shape]
        name = "x".join(map(str, shape))
        print(
            f"{name:16} {row['floor']:7.3f} {row['forward']:7.3f} {row['forward graph']:7.3f}"
            f"  {row['floor'] / row['forward graph']:6.1%} | {row['both']:7.3f} {row['both graph']:7.3f} |"
            f" {one} {two}  {one / row['forward graph']:.2f}x {two / row['both graph']:.2f}x"
            f"  kept {row['kept MB']:.0f} MB, peak {row['peak MB']:.0f} MB",
            flush=True,
        )
        rows.append(row)
    if not options.quick:
        for length, known in zip(LENGTHS, MAMBA_LENGTHS, strict=True):
            row = measure(1, length, 1024, rates, backward=False)
            print(
                f"{f'1x{length}x1024':16} {row['floor']:7.3f} {row['forward']:7.3f} {row['forward graph']:7.3f}"
                f"  mamba_ssm {known}  {known / row['forward graph']:.2f}x", flush=True,
            )  # fmt: skip
            rows.append(row)
    difference = largest_difference()
    print(f"largest difference of five runs, forward and backward: {difference}")
    if options.json:
        found = {"device": torch.cuda.get_device_name(), "copy": rates[0], "exponentials": rates[1],
                 "rows": rows, "difference": difference}  # fmt: skip
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
