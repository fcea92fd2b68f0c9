"""How fast state_space_dual's Triton kernels are beside mamba_ssm: `python benchmarks/gpu_state_space_dual.py`.

bf16 in and out, p = 64, n = 128, one group, D, dt_bias and softplus, no gate. Medians of CUDA graph replays over random
data, in turn over copies of the inputs that together do not fit the cache, beside mamba_ssm's figures on an H200 and,
where it can be imported, mamba_ssm on this card. --kernels times each kernel of a pass.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from adder.ops import state_space_dual
from adder.ops.state_space_dual import gpu
from gpu_selective_scan import CACHE, graphed, median

CHANNELS, STATES = 64, 128
# (b, l, h) -> milliseconds of mamba_ssm on an H200: forward, forward and backward.
MAMBA = {(8, 2048, 24): (0.371, 4.14), (8, 2048, 64): (0.544, 2.89), (1, 65536, 24): (1.056, 4.37)}
# Layouts to try with --layouts; what is not named is as chosen.
CANDIDATES: dict[str, list[dict[str, int]]] = {
    "states": [
        {},
        {"num_stages": 4},
        {"K": 64, "num_stages": 3, "maxnreg": 168},
        {"num_stages": 2, "maxnreg": 128},
    ],
    "output": [
        {},
        {"num_stages": 3},
        {"maxnreg": 96},
        {"N": 128, "maxnreg": 168},
        {"M": 128, "K": 32, "maxnreg": 255},
        {"N": 32},
    ],
    "edges": [
        {},
        {"num_stages": 1},
        {"num_stages": 3},
        {"maxnreg": 128},
        {"N": 64, "maxnreg": 255},
        {"N": 16},
    ],
    "input": [
        {},
        {"num_stages": 1},
        {"num_stages": 3},
        {"maxnreg": 128},
        {"maxnreg": 255},
        {"K": 16, "maxnreg": 128},
        {"K": 64, "maxnreg": 255},
    ],
    "pairs": [{}, {"num_stages": 4}, {"num_stages": 2}, {"maxnreg": 96}],
    "projection": [
        {},
        {"num_stages": 2},
        {"num_stages": 4},
        {"maxnreg": 255},
        {"K": 32},
        {"M": 128, "N": 64, "maxnreg": 255},
    ],
}
Call = Callable[..., Any]


def draw(b: int, l: int, h: int, *, gradients: bool) -> dict[str, torch.Tensor]:
    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, device="cuda").to(dtype)

    inputs = {"x": normal(b, l, h, CHANNELS), "dt": normal(b, l, h)}
    inputs |= {name: normal(b, l, 1, STATES) for name in ("B", "C")}
    inputs |= {name: normal(h, dtype=torch.float32) for name in ("D", "dt_bias")}
    inputs["A"] = -torch.rand(h, device="cuda") * 15 - 1
    return {name: each.requires_grad_(gradients) for name, each in inputs.items()}


def ours(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return state_space_dual(**inputs, dt_softplus=True)[0]


def theirs() -> Call | None:
    """mamba_ssm's function, where it is installed."""
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError:
        return None

    def call(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        given = [inputs[name] for name in ("x", "dt", "A", "B", "C")]
        more = {name: inputs[name] for name in ("D", "dt_bias")}
        return mamba_chunk_scan_combined(*given, 256, **more, dt_softplus=True)

    return call


def both_passes(function: Call, inputs: dict[str, torch.Tensor]) -> Callable[[], Any]:
    dy = torch.randn_like(inputs["x"])
    return lambda: torch.autograd.grad(function(inputs), list(inputs.values()), dy)


def measure(function: Call, shape: tuple[int, int, int], *, graphs: bool) -> dict[str, float]:
    """Medians in ms, and the peak of memory beside the inputs."""
    b, l, h = shape
    copies = max(2, min(8, 2 * CACHE // (4 * b * l * h * CHANNELS) + 1))
    sets = [draw(*shape, gradients=False) for _ in range(copies)]
    with torch.no_grad():
        calls: list[Callable[[], Any]] = [lambda s=s: function(s) for s in sets]  # type: ignore[misc]
        found = {"forward": median(calls)}
        if graphs:
            found["forward graph"] = median(graphed(calls))
    sets = [draw(*shape, gradients=True) for _ in range(copies)]
    both = [both_passes(function, each) for each in sets]
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found["both"] = median(both)
    found["peak MB"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    if graphs:
        found["both graph"] = median(graphed(both))
    return found


def by_kernel(shape: tuple[int, int, int], runs: int = 10) -> dict[str, float]:
    """Milliseconds of each kernel in one forward and backward pass."""
    call = both_passes(ours, draw(*shape, gradients=True))
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(runs):
            call()
        torch.cuda.synchronize()
    averages = sorted(profile.key_averages(), key=lambda each: -each.self_device_time_total)
    return {each.key[:60]: each.self_device_time_total / 1e3 / runs for each in averages}


def try_layouts(shape: tuple[int, int, int]) -> None:
    """Print the milliseconds of each kernel by its layout, the others' being as they are, and how results differ."""
    check = both_passes(ours, draw(1, 1000, 8, gradients=True))
    expected = check()
    for kernel, candidates in CANDIDATES.items():
        chosen = gpu.LAYOUTS[kernel]
        for candidate in candidates:
            gpu.LAYOUTS[kernel] = ({**chosen[0], **candidate}, chosen[1])
            try:
                times, got = by_kernel(shape, runs=5), check()
            except Exception as error:  # too much shared memory, for one
                print(f"  failed {kernel} {candidate}: {str(error)[:100]}", flush=True)
                continue
            ms = sum(ms for name, ms in times.items() if f"{kernel}_kernel" in name)
            pairs = zip(got, expected, strict=True)
            worst = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
            print(f"{ms:8.3f} {worst:.1e} {kernel} {gpu.LAYOUTS[kernel][0]}", flush=True)
        gpu.LAYOUTS[kernel] = chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write every figure")
    parser.add_argument("--kernels", action="store_true", help="times of each kernel as well")
    parser.add_argument("--layouts", action="store_true", help="only times of layouts")
    options = parser.parse_args()
    if options.layouts:
        try_layouts((8, 2048, 64))
        return
    print(f"{torch.cuda.get_device_name()}; graph replays, in ms; mamba_ssm on an H200, and ratios")
    rows, other = [], theirs()
    for shape, (one, two) in MAMBA.items():
        row: dict[str, Any] = {"shape": shape, **measure(ours, shape, graphs=True)}
        first, second = row["forward graph"], row["both graph"]
        print(
            f"{'x'.join(map(str, shape)):12} forward {first:.3f} ({one}, {one / first:.2f}x)"
            f"  both {second:.3f} ({two}, {two / second:.2f}x)"
            f"  without graphs {row['forward']:.3f}, {row['both']:.3f}  peak {row['peak MB']:.0f} MB", flush=True,
        )  # fmt: skip
        if other is not None:
            row["mamba_ssm"] = measure(other, shape, graphs=False)
            print(f"{'':12} mamba_ssm here: {row['mamba_ssm']}", flush=True)
        if options.kernels:
            row["kernels"] = by_kernel(shape)
            for name, ms in row["kernels"].items():
                print(f"{'':12} {ms:8.3f} {name}")
        rows.append(row)
    if options.json:
        found = {"device": torch.cuda.get_device_name(), "rows": rows}
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
