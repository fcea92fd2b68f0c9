"""How fast is selective_scan beside a loop over time in PyTorch, and what does its backward cost?

    python benchmarks/scan.py [--json]

The loops are what the field runs where it has no kernel: the decay and the input of every step are
made as (b, d, l, n) tensors, then one step after the other is taken. Nothing is timed unless all
agree first.
"""

import argparse
import json
import statistics
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from adder.benchmark.timing import machine, median_seconds, seconds
from adder.ops import native, selective_scan

Arguments = dict[str, Tensor | bool]


def loop_by_einsum(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    z: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """Mamba's recurrence in the manner of mamba_ssm's reference: channels first, by einsum."""
    u, delta, B, C = (x.transpose(1, 2) for x in (u, delta, B, C))
    delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    drive = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    h = torch.zeros_like(decay[:, :, 0])
    outputs = []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + drive[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))
    y = torch.stack(outputs, dim=2) + u * D[:, None]
    return y.transpose(1, 2) * F.silu(z)


def loop_by_matmul(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    z: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """The same in the manner of Hugging Face's slow path: broadcasting, then a matmul each step."""
    u, delta = u.transpose(1, 2), (delta + delta_bias).transpose(1, 2)
    if delta_softplus:
        delta = F.softplus(delta)
    decay = torch.exp(A[None, :, None] * delta[..., None])
    drive = delta[..., None] * B[:, None] * u[..., None]
    h = torch.zeros_like(decay[:, :, 0])
    outputs = []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + drive[:, :, t]
        outputs.append((h @ C[:, t, :, None])[..., 0])
    y = torch.stack(outputs, dim=-1) + u * D[None, :, None]
    return (y * F.silu(z.transpose(1, 2))).transpose(1, 2)


LOOPS = {"einsum": loop_by_einsum, "matmul": loop_by_matmul}


def inputs(b: int, length: int, d: int, n: int) -> Arguments:
    """Inputs as they are inside a Mamba block, float32."""
    torch.manual_seed(0)
    return {
        "u": torch.randn(b, length, d),
        "delta": torch.randn(b, length, d) * 0.5,
        "A": -torch.arange(1.0, n + 1).repeat(d, 1),
        "B": torch.randn(b, length, n),
        "C": torch.randn(b, length, n),
        "D": torch.ones(d),
        "z": torch.randn(b, length, d),
        "delta_bias": torch.rand(d) - 4,
        "delta_softplus": True,
    }


def tensors_of(arguments: Arguments) -> dict[str, Tensor]:
    return {name: value for name, value in arguments.items() if isinstance(value, Tensor)}


def with_gradients(arguments: Arguments) -> Arguments:
    leaves = {
        name: tensor.clone().requires_grad_() for name, tensor in tensors_of(arguments).items()
    }
    return {**arguments, **leaves}


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """The memory behind tensors, where several may look at the same."""
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def memory_for_backward(arguments: Arguments) -> float:
    """Bytes kept for the backward pass over the bytes of the inputs and outputs."""
    saved: list[Tensor] = []
    leaves = with_gradients(arguments)

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y, state = selective_scan(**leaves)
    return bytes_of(saved) / bytes_of([*tensors_of(leaves).values(), y, state])


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def bare(arguments: Arguments) -> Arguments:
    """The recurrence alone: steps that are already positive, no gate."""
    return {name: arguments[name] for name in "uABCD"} | {
        "delta": F.softplus(arguments["delta"] + arguments["delta_bias"])
    }


def times(arguments: Arguments, repeats: int) -> dict[str, float]:
    """Median seconds of forward, and of forward and backward; and the best of forward.

    The best one is without the page faults that a fresh output costs whenever malloc has given memory back.
    """
    leaves = with_gradients(arguments)
    parameters = list(tensors_of(leaves).values())
    upstream = torch.ones_like(leaves["u"])

    @torch.no_grad()
    def forward() -> object:
        return selective_scan(**arguments)

    def both() -> object:
        y, _ = selective_scan(**leaves)
        return torch.autograd.grad(y, parameters, upstream)

    found = seconds({"forward": forward, "both": both}, repeats=repeats, warm_up=3)
    return {name: statistics.median(each) for name, each in found.items()} | {
        "best": min(found["forward"])
    }


def measure(options: argparse.Namespace) -> dict[str, float | str]:
    torch.set_num_threads(options.threads)
    shape = (options.batch, options.length, options.channels, options.state_size)
    arguments = inputs(*shape)
    with torch.no_grad():
        y = selective_scan(**arguments)[0]
        error = max(relative_error(y, loop(**arguments)) for loop in LOOPS.values())
        if not error < 1e-5:
            raise SystemExit(f"the scan and the loops disagree: relative error {error:.1e}")
        loops = {name: partial(loop, **arguments) for name, loop in LOOPS.items()}
        scan = partial(selective_scan, **arguments)
        slow = median_seconds({"forward": scan, **loops}, repeats=5)
    alone, block = (times(each, options.repeats) for each in (bare(arguments), arguments))
    b, length, d, n = shape
    updates = b * length * d * n
    return {
        "machine": machine(),
        "kernel": native.status().isa or "portable PyTorch",
        "shape": f"({b}, {length}, {d}), n = {n}, float32",
        "threads": options.threads,
        "relative error": error,
        "scan alone ms": alone["forward"] * 1e3,
        "scan alone, G state updates/s": updates / alone["forward"] / 1e9,
        "scan alone, best run": updates / alone["best"] / 1e9,
        "scan alone, (forward + backward) / forward": alone["both"] / alone["forward"],
        "with softplus and gate ms": block["forward"] * 1e3,
        "with both, G state updates/s": updates / block["forward"] / 1e9,
        "with both, best run": updates / block["best"] / 1e9,
        "with both, (forward + backward) / forward": block["both"] / block["forward"],
        "loop by einsum (mamba_ssm) ms": slow["einsum"] * 1e3,
        "loop by matmul (Hugging Face) ms": slow["matmul"] * 1e3,
        "loop by einsum / scan with both": slow["einsum"] / block["forward"],
        "loop by matmul / scan with both": slow["matmul"] / block["forward"],
        "saved bytes / (inputs + outputs)": memory_for_backward(arguments),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--channels", type=int, default=1536)
    parser.add_argument("--state-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<46}{value:.4g}" if isinstance(value, float) else f"{name:<46}{value}")


if __name__ == "__main__":
    main()
