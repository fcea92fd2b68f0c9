"""The calls that short_convolution's Triton kernels are tried on, in Triton's interpreter and on a GPU alike."""

import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from gpu_cases import INTERPRETED, Case, hold, interpret, on_device, the_same_bits
from inputs import lengths_of, seq_idx_of
from test_short_convolution import draw
from tolerance import evaluate

from adder.ops import short_convolution
from adder.ops.short_convolution import gpu
from adder.ops.short_convolution.reference import short_convolution_reference


def case(name: str, inputs: dict[str, Any], activation: str | None = "silu") -> Case:
    function = partial(short_convolution, activation=activation)
    return name, function, partial(short_convolution_reference, activation=activation), inputs


def cases() -> Iterator[Case]:
    """Blocks of 4 or 8 steps, segments of 32 (35 in the backward pass with 4 taps), warps of 64 to 256 channels."""
    for length, channels, taps in [(1, 1, 4), (2, 3, 4), (5, 2, 1), (33, 3, 2), (40, 130, 4)]:
        yield case(f"float32 l={length} d={channels} k={taps}", draw(1, length, channels, taps))
    yield case("8 taps", draw(1, 44, 2, 8))
    yield case("bfloat16", draw(2, 75, 3, 4, torch.bfloat16))
    yield case("float16", draw(2, 38, 257, 3, torch.float16, mixed=False))
    packed = seq_idx_of(1, lengths_of(71))
    yield case("packed", {**draw(1, 71, 2, 4), "seq_idx": packed})
    yield case("packed, short", {**draw(1, 2, 2, 4), "seq_idx": seq_idx_of(1, [1, 1])})
    yield case("packed, no state", {**draw(1, 71, 2, 4), "seq_idx": packed, "state": None}, None)
    for absent in (["bias"], ["state"], ["bias", "state"]):
        yield case(f"without {absent}", {**draw(1, 37, 2, 4), **dict.fromkeys(absent)})
    yield case("no activation", draw(1, 37, 2, 4), None)
    wide = draw(1, 37, 12, 4)["x"]
    yield case("a slice", {**draw(1, 37, 6, 4), "x": wide[..., 3:9]})
    yield case("every other step", {**draw(1, 19, 12, 4), "x": wide[:, ::2]})
    yield case("transposed", {**draw(1, 12, 37, 4), "x": wide.mT})
    inputs = draw(1, 12, 5, 3)
    yield case("weight (k d)", {**inputs, "weight": inputs["weight"].t().contiguous().t()})
    yield case("far from zero", {**draw(1, 9, 2, 4), "x": draw(1, 9, 2, 4)["x"] * 100})
    if not INTERPRETED:  # which is slow
        for dtype in gpu.STORAGE:
            for channels in (256, 512, 1000, 1024):
                yield case(f"{dtype} d={channels}", draw(2, 1031, channels, 4, dtype))
        long = draw(2, 1031, 300, 4, torch.bfloat16)
        starts = seq_idx_of(2, [3, 500, 28, 400, 100])
        yield case("long and packed", {**long, "seq_idx": starts})


def sequences_do_not_leak() -> None:
    """NaN in one packed sequence stays there."""
    inputs = draw(1, 50, 3, 4)
    inputs["x"][:, :34] = torch.nan
    call = partial(on_device, short_convolution, activation="silu", seq_idx=seq_idx_of(1, [34, 16]))
    results = evaluate(call, inputs)
    for name in ("output 0", "gradient of x"):
        assert results[name][:, 34:].isfinite().all(), name
    assert results["output 1"].isfinite().all()


def main(share: int = 0, shares: int = 1) -> None:
    """Try every case, or one share of them, as many processes compile faster."""
    interpret("short_convolution", gpu.forward, gpu.backward)
    hold(islice(cases(), share, None, shares))
    print("leaks", flush=True)
    sequences_do_not_leak()
    if not INTERPRETED and share == 0:
        print("five runs", flush=True)
        inputs = draw(3, 2000, 1536, 4, torch.bfloat16)
        the_same_bits(partial(short_convolution, activation="silu"), inputs)
    print("done")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
