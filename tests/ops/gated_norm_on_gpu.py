"""The calls that the Triton kernels of the norms are tried on, in Triton's interpreter and on a GPU alike."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from gpu_cases import INTERPRETED, Case, hold, interpret, on_device, the_same_bits
from test_gated_norm import draw, plain
from tolerance import evaluate
from torch import Tensor

from adder.ops import gated_norm, rms_norm
from adder.ops.gated_norm import gpu
from adder.ops.gated_norm.reference import gated_norm_reference, rms_norm_reference

EPS = 1e-5


def gated(name: str, inputs: dict[str, Any], **options: Any) -> Case:
    options = {"eps": EPS, **options}
    return (
        f"gated {name} {options}",
        partial(gated_norm, **options),
        partial(gated_norm_reference, **options),
        inputs,
    )


def root_mean_square(name: str, inputs: dict[str, Any]) -> Case:
    both = partial(rms_norm, eps=EPS), partial(rms_norm_reference, eps=EPS)
    return f"plain {name}", *both, plain(inputs)


def cases() -> Iterator[Case]:
    """Tiles have 1024 numbers or more; gpu.WARPS is small in the interpreter, so a program has many rows."""
    for shape in [(5,), (3, 17), (2, 33, 31), (2, 3, 2, 63), (3, 7, 1025)]:
        yield root_mean_square(f"{shape}", draw(*shape))
        for before in (False, True):
            yield gated(f"{shape}", draw(*shape), norm_before_gate=before)
    for dtype in (torch.bfloat16, torch.float16):
        yield root_mean_square(f"{dtype}", draw(2, 9, 130, dtype=dtype))
        yield gated(f"{dtype}", draw(2, 9, 130, dtype=dtype, mixed=False))
    for before in (False, True):
        yield gated("groups", draw(2, 19, 99), group_size=33, norm_before_gate=before)
        yield gated("groups", draw(2, 5, 64), group_size=32, norm_before_gate=before)
    wide = draw(4, 26, 40)
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda x: x[::2, :, 3:20],
        lambda x: x.transpose(1, 2),
        lambda x: x.transpose(0, 1),
        lambda x: x[:1, :1].expand(3, 5, -1),
        lambda x: x.view(4, 2, 13, 40).transpose(1, 2),
    ]
    for i, change in enumerate(changes):
        y, z = change(wide["y"]), change(wide["z"]).flip(0)
        weight = wide["weight"].repeat(2)[: 2 * y.shape[-1] : 2]
        yield gated(f"strides {i}", {"y": y, "z": z, "weight": weight})
    far = draw(2, 9, 17)
    yield gated("far from zero", {**far, "z": far["z"] * 100})
    if not INTERPRETED:  # which is slow
        for dtype in gpu.STORAGE:
            for d in (1536, 4096, 16384):
                yield root_mean_square(f"{dtype} {d}", draw(2, 131, d, dtype=dtype))
                yield gated(f"{dtype} {d}", draw(2, 131, d, dtype=dtype))
            yield gated(f"{dtype}", draw(3, 531, 2048, dtype=dtype), group_size=256)


def rows_are_alone() -> None:
    """NaN in one row stays there."""
    inputs = draw(1, 40, 9)
    inputs["y"][:, 7] = torch.nan
    results = evaluate(partial(on_device, partial(gated_norm, eps=EPS)), inputs)
    others = [i for i in range(40) if i != 7]
    for name in ("output 0", "gradient of y", "gradient of z"):
        assert results[name][:, others].isfinite().all(), name


def main(share: int = 0, shares: int = 1) -> None:
    """Try every case, or one share of them, as many processes compile faster."""
    interpret("gated_norm", gpu.forward, gpu.backward)
    if INTERPRETED:
        gpu.WARPS = 8
    hold(islice(cases(), share, None, shares))
    print("leaks", flush=True)
    rows_are_alone()
    if not INTERPRETED and share == 0:
        print("five runs", flush=True)
        inputs = draw(3, 2000, 1536, dtype=torch.bfloat16)
        the_same_bits(partial(gated_norm, eps=EPS), inputs)
    print("done")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
