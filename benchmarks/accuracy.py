"""How far is each operator from the float64 reference, and a model read in pieces from one read whole?

    python benchmarks/accuracy.py [--json]

Errors are the largest difference over the largest value. "reference" is the same operator's own
reference, run in the type of the row: what rounding alone costs.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adder import S4, S4D, LanguageModel, LanguageModelConfig
from adder.benchmark.timing import machine
from adder.ops import (
    diagonal_kernel,
    dplr_kernel,
    gated_norm,
    linear_scan,
    long_convolution,
    rms_norm,
    selective_scan,
    short_convolution,
    state_space_dual,
)
from adder.ops.diagonal_kernel.reference import diagonal_kernel_reference
from adder.ops.dplr_kernel.reference import dplr_kernel_reference
from adder.ops.gated_norm.reference import gated_norm_reference, rms_norm_reference
from adder.ops.linear_scan.reference import linear_scan_reference
from adder.ops.long_convolution.reference import long_convolution_reference
from adder.ops.selective_scan.reference import selective_scan_reference
from adder.ops.short_convolution.reference import short_convolution_reference
from adder.ops.state_space_dual.reference import state_space_dual_reference

B, L, D, N = 2, 512, 64, 16


def cases(
    dtype: torch.dtype,
) -> list[tuple[str, Callable[..., Any], Callable[..., Any], dict[str, Any]]]:
    torch.manual_seed(0)
    x, z, delta = (torch.randn(B, L, D).to(dtype) for _ in range(3))
    project = [torch.randn(B, L, N).to(dtype) for _ in range(2)]
    weight, taps = torch.rand(D) + 0.5, torch.randn(D, 4)
    if dtype == torch.float64:
        weight, taps = weight.double(), taps.double()
    A = -torch.arange(1.0, N + 1, dtype=weight.dtype).repeat(D, 1)
    scan = {"u": x, "delta": delta - 3, "A": A, "B": project[0], "C": project[1], "z": z}
    norm = {"weight": weight, "eps": 1e-5}
    heads = {"x": x.unflatten(2, (4, -1)), "dt": delta[..., :4] - 3, "A": A[0, :4]}
    heads |= {"B": project[0].unsqueeze(2), "C": project[1].unsqueeze(2), "dt_softplus": True}
    return [
        ("linear_scan", linear_scan, linear_scan_reference, {"a": torch.sigmoid(z + 3), "x": x}),
        (
            "selective_scan",
            selective_scan,
            selective_scan_reference,
            {**scan, "delta_softplus": True},
        ),
        ("state_space_dual", state_space_dual, state_space_dual_reference, heads),
        (
            "short_convolution",
            short_convolution,
            short_convolution_reference,
            {"x": x, "weight": taps, "activation": "silu"},
        ),
        ("rms_norm", rms_norm, rms_norm_reference, {"x": x, **norm}),
        ("gated_norm", gated_norm, gated_norm_reference, {"y": x, "z": z, **norm}),
        *linear_cases(dtype, x),
    ]


def linear_cases(
    dtype: torch.dtype, u: Tensor
) -> list[tuple[str, Callable[..., Any], Callable[..., Any], dict[str, Any]]]:
    """S4's operators, at n = 64: kernels of L taps, in float32 and float64."""
    if dtype == torch.bfloat16:
        return []
    layer = S4(D, 64).to(dtype)
    Lambda, P, B, C, dt = (each.detach() for each in layer._system(1.0))
    if dtype == torch.float32:
        Lambda, dt = Lambda.to(torch.complex64), dt.float()
    K = dplr_kernel(Lambda, P, B, C, dt, L)
    modes = {"A": Lambda, "B": B, "C": C, "dt": dt}
    low_rank = {"Lambda": Lambda, "P": P, "B": B, "C": C, "dt": dt}
    return [
        (
            "diagonal_kernel",
            partial(diagonal_kernel, length=L),
            partial(diagonal_kernel_reference, length=L),
            modes,
        ),
        (
            "dplr_kernel",
            partial(dplr_kernel, length=L),
            partial(dplr_kernel_reference, length=L),
            low_rank,
        ),
        ("long_convolution", long_convolution, long_convolution_reference, {"u": u, "K": K}),
    ]


def evaluate(function: Callable[..., Any], inputs: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    """The output and the gradient of every input, in float64."""
    leaves = {
        k: v.clone().requires_grad_() if isinstance(v, Tensor) else v for k, v in inputs.items()
    }
    out = function(**leaves)
    out = out[0] if isinstance(out, tuple) else out
    weights = torch.randint(-8, 9, out.shape, generator=torch.Generator().manual_seed(1)) / 8
    wanted = [each for each in leaves.values() if isinstance(each, Tensor)]
    gradients = torch.autograd.grad(out, wanted, weights.to(out.dtype))
    return wide(out.detach()), [wide(each) for each in gradients]


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def wide(x: Tensor) -> Tensor:
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def widen(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: wide(v) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def operators(dtype: torch.dtype) -> list[dict[str, Any]]:
    rows = []
    for name, function, reference, inputs in cases(dtype):
        truth = evaluate(reference, widen(inputs))
        row: dict[str, Any] = {"operator": name, "type": str(dtype).removeprefix("torch.")}
        for who, (out, gradients) in {
            "ours": evaluate(function, inputs),
            "reference": evaluate(reference, inputs),
        }.items():
            row[f"output, {who}"] = error(out, truth[0])
            row[f"gradients, {who}"] = max(map(error, gradients, truth[1]))
        rows.append(row)
    return rows


@torch.no_grad()
def views(dtype: torch.dtype) -> dict[str, float]:
    """A language model's logits for a text read whole, in chunks of 7, and token by token."""
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(vocab_size=100, d_model=128, n_layer=6)).to(dtype)
    ids = torch.randint(0, 100, (1, 512))
    whole = model(ids).logits.double()
    found = {}
    for name, size in {"chunks of 7": 7, "token by token": 1}.items():
        state, parts = model.initial_state(1), []
        for piece in ids.split(size, dim=1):
            _, logits, state = model(piece, state=state)
            parts.append(logits.double())
        found[name] = error(torch.cat(parts, dim=1), whole)
    return found


@torch.no_grad()
def layer_views(dtype: torch.dtype) -> dict[str, float]:
    """S4 and S4D at n = 64: the recurrence, in pieces, against the convolution over 2048 steps."""
    found = {}
    for kind in (S4, S4D):
        torch.manual_seed(0)
        layer, u = kind(16, 64).to(dtype), torch.randn(2, 2048, 16, dtype=dtype)
        whole = layer(u)[0].double()
        for name, size in {"chunks of 100": 100, "step by step": 1}.items():
            state, parts = layer.initial_state(2), []
            for piece in u.split(size, dim=1):
                y, state = layer(piece, state)
                parts.append(y.double())
            found[f"{kind.__name__} {name}"] = error(torch.cat(parts, dim=1), whole)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Errors against float64, and between views.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    types = (torch.float32, torch.bfloat16, torch.float64)
    rows = [row for dtype in types for row in operators(dtype)]
    pieces = {
        str(t).removeprefix("torch."): {**views(t), **layer_views(t)}
        for t in (torch.float32, torch.float64)
    }
    if options.json:
        print(json.dumps({"machine": machine(), "operators": rows, "views": pieces}))
        return
    print(machine())
    columns = list(rows[0])
    print(f"{'operator':18}{'type':10}" + "".join(f"{name:>22}" for name in columns[2:]))
    for row in rows:
        errors = "".join(f"{row[name]:22.1e}" for name in columns[2:])
        print(f"{row['operator']:18}{row['type']:10}{errors}")
    for kind, found in pieces.items():
        print(
            f"whole text against pieces, {kind}: {', '.join(f'{k} {v:.1e}' for k, v in found.items())}"
        )


if __name__ == "__main__":
    main()
