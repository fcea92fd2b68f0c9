"""How near the memory-bound operators are to what a GPU's memory can do: `python benchmarks/gpu_operators.py`.

short_convolution with 4 taps, bias and silu, rms_norm and gated_norm, bf16, forward and with the backward pass. The
floor is the bytes that an operator cannot avoid, over the speed at which this card copies. Beside it the same from
PyTorch: F.conv1d by channels and F.silu on (b d l), where nothing is transposed, F.rms_norm, and y silu(z) before it.
Medians of device events over random data, in turn over copies of the inputs that together do not fit the cache, once
as called and once as a CUDA graph, which leaves out what launching costs. Prints a table and writes JSON.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adder.ops import gated_norm, rms_norm, short_convolution
from gpu_selective_scan import ceilings, graphed, median

SHAPES = [(8, 2048, 4096), (32, 2048, 1536)]
TAPS = 4
EPS = 1e-5
COPIES = 2  # each is larger than the cache
# Tensors of (b l d) that have to be read or written: forward, forward and backward.
TENSORS = {"short_convolution": (2, 5), "rms_norm": (2, 5), "gated_norm": (3, 8)}
Call = Callable[..., Tensor]


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return short_convolution(x, weight, bias, activation="silu")[0]


def convolve_in_torch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    d, length = x.shape[1:]
    y = F.conv1d(x, weight.unsqueeze(1), bias, padding=TAPS - 1, groups=d)
    return F.silu(y[..., :length])


def normalise_in_torch(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, EPS)


def gate_in_torch(y: Tensor, z: Tensor, weight: Tensor) -> Tensor:
    return normalise_in_torch(y * F.silu(z), weight)


def candidates(b: int, length: int, d: int) -> dict[str, list[tuple[Call, list[tuple[int, ...]]]]]:
    """Operator -> ours and PyTorch's, each with the shapes of its arguments."""
    signal = (b, length, d)
    return {
        "short_convolution": [
            (convolve, [signal, (d, TAPS), (d,)]),
            (convolve_in_torch, [(b, d, length), (d, TAPS), (d,)]),
        ],
        "rms_norm": [
            (partial(rms_norm, eps=EPS), [signal, (d,)]),
            (normalise_in_torch, [signal, (d,)]),
        ],
        "gated_norm": [
            (partial(gated_norm, eps=EPS), [signal, signal, (d,)]),
            (gate_in_torch, [signal, signal, (d,)]),
        ],
    }


def draw(shapes: list[tuple[int, ...]], *, gradients: bool) -> list[Tensor]:
    return [
        torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_(gradients)
        for shape in shapes
    ]


def both_passes(function: Call, inputs: list[Tensor], dy: Tensor) -> Callable[[], Any]:
    def call() -> Any:
        return torch.autograd.grad(function(*inputs), inputs, dy)

    return call


def times(function: Call, shapes: list[tuple[int, ...]]) -> dict[str, float]:
    """Milliseconds: forward and both passes, as called and as a graph."""
    sets = [draw(shapes, gradients=False) for _ in range(COPIES)]
    with torch.no_grad():
        calls = [partial(function, *inputs) for inputs in sets]
        found = {"forward": median(calls), "forward graph": median(graphed(calls))}
    sets = [draw(shapes, gradients=True) for _ in range(COPIES)]
    both = [both_passes(function, inputs, torch.randn_like(inputs[0])) for inputs in sets]
    return {**found, "both": median(both), "both graph": median(graphed(both))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write every figure")
    options = parser.parse_args()
    copied, _ = ceilings()
    print(f"{torch.cuda.get_device_name()}: copy {copied / 1e12:.2f} TB/s; milliseconds")
    print(
        f"{'':42} {'floor':>7} {'called':>7} {'graph':>7} {'of floor':>8} {'torch':>7} {'ratio':>6}"
    )
    rows = []
    for shape in SHAPES:
        b, length, d = shape
        for operator, ((ours, shapes), (theirs, their_shapes)) in candidates(*shape).items():
            mine, other = times(ours, shapes), times(theirs, their_shapes)
            for name, tensors in zip(("forward", "both"), TENSORS[operator], strict=True):
                floor = 1e3 * tensors * b * length * d * 2 / copied
                graph, torch_graph = mine[f"{name} graph"], other[f"{name} graph"]
                title = f"{operator} {'x'.join(map(str, shape))} {name}"
                print(
                    f"{title:42} {floor:7.3f} {mine[name]:7.3f} {graph:7.3f} {floor / graph:8.1%}"
                    f" {torch_graph:7.3f} {torch_graph / graph:5.1f}x",
                    flush=True,
                )
                rows.append(
                    {"operator": operator, "shape": shape, "pass": name, "floor": floor,
                     "called": mine[name], "graph": graph, "torch": other[name], "torch graph": torch_graph}
                )  # fmt: skip
    if options.json:
        found = {"device": torch.cuda.get_device_name(), "copy": copied, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
