"""Times of each Triton kernel of state_space_dual, and of other layouts: `python benchmarks/gpu_state_space_dual.py`.

bf16, p = 64, n = 128, one group, D, dt_bias and softplus, no gate, forward and backward. Whole passes beside peers are
measured by `adder bench gpu --only operators`.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch

from adder.ops import state_space_dual
from adder.ops.state_space_dual import gpu

CHANNELS, STATES = 64, 128
SHAPES = ((8, 2048, 24), (8, 2048, 64), (1, 65536, 24))  # b, l, h
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


def both_passes(b: int, l: int, h: int) -> Callable[[], Any]:
    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, device="cuda").to(dtype)

    inputs = {"x": normal(b, l, h, CHANNELS), "dt": normal(b, l, h)}
    inputs |= {name: normal(b, l, 1, STATES) for name in ("B", "C")}
    inputs |= {name: normal(h, dtype=torch.float32) for name in ("D", "dt_bias")}
    inputs["A"] = -torch.rand(h, device="cuda") * 15 - 1
    inputs = {name: each.requires_grad_() for name, each in inputs.items()}
    dy = torch.randn_like(inputs["x"])
    return lambda: torch.autograd.grad(
        state_space_dual(**inputs, dt_softplus=True)[0], list(inputs.values()), dy
    )


def by_kernel(call: Callable[[], Any], runs: int = 10) -> dict[str, float]:
    """Milliseconds of each kernel in one forward and backward pass."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(runs):
            call()
        torch.cuda.synchronize()
    averages = sorted(profile.key_averages(), key=lambda each: -each.self_device_time_total)
    return {each.key[:60]: each.self_device_time_total / 1e3 / runs for each in averages}


def try_layouts(shape: tuple[int, int, int]) -> None:
    """Print the milliseconds of each kernel by its layout, the others' being as they are, and how results differ."""
    call = both_passes(*shape)
    check = both_passes(1, 1000, 8)
    expected = check()
    for kernel, candidates in CANDIDATES.items():
        chosen = gpu.LAYOUTS[kernel]
        for candidate in candidates:
            gpu.LAYOUTS[kernel] = ({**chosen[0], **candidate}, chosen[1])
            try:
                times, got = by_kernel(call, runs=5), check()
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
    parser.add_argument("--layouts", action="store_true", help="times of layouts instead")
    options = parser.parse_args()
    print(torch.cuda.get_device_name())
    if options.layouts:
        try_layouts(SHAPES[1])
        return
    for shape in SHAPES:
        print("x".join(map(str, shape)))
        for name, ms in by_kernel(both_passes(*shape)).items():
            print(f"{ms:8.3f} {name}")


if __name__ == "__main__":
    main()
