"""The calls that selective_scan's Triton kernels are tried on, in Triton's interpreter and on a GPU alike."""

import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from gpu_cases import INTERPRETED, hold, interpret, on_device, the_same_bits
from inputs import lengths_of, seq_idx_of
from test_selective_scan import draw
from tolerance import evaluate
from torch import Tensor

from adder.ops import selective_scan
from adder.ops.selective_scan import gpu
from adder.ops.selective_scan.portable import Inputs
from adder.ops.selective_scan.reference import selective_scan_reference

WHOLE, CUT = 1, 1 << 20  # values of gpu.ENOUGH: one segment, or one for each chunk
Case = tuple[str, int, dict[str, Any]]


def cases() -> Iterator[Case]:
    """Name, gpu.ENOUGH, inputs. Blocks have 8 steps, chunks 32; a program has up to 128 channels."""
    for length, channels, states in [(1, 1, 1), (31, 2, 3), (33, 33, 1), (41, 2, 2)]:
        yield f"float32 l={length} d={channels} n={states}", CUT, draw(1, length, channels, states)
    for states in (9, 17):  # lanes share a channel in the forward pass: two, and four
        yield f"float32 l=10 d=3 n={states}", CUT, draw(1, 10, 3, states)
    yield "one segment", WHOLE, draw(2, 33, 2, 2)
    yield "bfloat16", CUT, draw(1, 32, 32, 1, torch.bfloat16)
    yield "float16", CUT, draw(2, 9, 4, 2, torch.float16)
    yield "groups", CUT, draw(1, 17, 6, 2, groups=3)
    packed = draw(1, 41, 2, 2)
    yield "packed", CUT, {**packed, "seq_idx": seq_idx_of(1, lengths_of(41))}
    for absent in (["D"], ["z"], ["D", "z", "state", "delta_bias"]):
        yield f"without {absent}", CUT, {**draw(1, 33, 2, 2), **dict.fromkeys(absent)}
    plain = draw(1, 9, 3, 2)
    plain |= {"delta": plain["delta"].abs(), "delta_bias": None, "delta_softplus": False}
    yield "no softplus", CUT, plain
    yield "strided", CUT, strided(draw(2, 9, 6, 3))
    if not INTERPRETED:  # which is slow
        for states in (1, 16, 64, 256):
            yield f"n={states}", CUT, draw(2, 300, 150, states)
            yield f"n={states}, bfloat16", WHOLE, draw(2, 256, 128, states, torch.bfloat16)
        packed = draw(2, 1031, 70, 16, groups=2)
        for segments in (WHOLE, CUT):
            starts = seq_idx_of(2, [3, 500, 28, 400, 100])
            yield "long and packed", segments, {**packed, "seq_idx": starts}


def strided(inputs: dict[str, Any]) -> dict[str, Any]:
    """The signals as slices of one tensor, B and C with other strides than their shapes have."""
    d = inputs["u"].shape[2]
    wide = torch.cat([inputs["u"], inputs["z"], inputs["delta"]], dim=-1)
    inputs["u"], inputs["z"], inputs["delta"] = wide.split(d, dim=-1)
    inputs["B"] = inputs["B"].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["C"] = torch.cat([inputs["C"], inputs["C"]], dim=-1)[..., : inputs["C"].shape[-1]]
    return inputs


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return gpu.forward(Inputs(*arguments[:11]), arguments[11])


def backward(*arguments: Any) -> list[Tensor]:
    return gpu.backward(Inputs(*arguments[:11]), *arguments[11:])


def sequences_do_not_leak() -> None:
    """NaN in one packed sequence stays there, within a segment and across segments."""
    inputs = draw(1, 50, 3, 2)
    inputs["u"][:, :40] = torch.nan
    results = evaluate(partial(on_device, selective_scan, seq_idx=seq_idx_of(1, [40, 10])), inputs)
    for name in ("output 0", "gradient of u", "gradient of delta", "gradient of B"):
        assert results[name][:, 40:].isfinite().all(), name
    assert results["output 1"].isfinite().all()


def main(share: int = 0, shares: int = 1) -> None:
    """Try every case, or one share of them, as many processes compile faster."""
    interpret("selective_scan", forward, backward)
    for name, gpu.ENOUGH, inputs in islice(cases(), share, None, shares):
        hold([(name, selective_scan, selective_scan_reference, inputs)])
    for gpu.ENOUGH in (CUT,) if INTERPRETED else (CUT, WHOLE):
        print("leaks", flush=True)
        sequences_do_not_leak()
        if not INTERPRETED:
            the_same_bits(selective_scan, draw(2, 600, 300, 16, torch.bfloat16))
    print("done")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
