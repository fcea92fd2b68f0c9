"""How fast is each operator, against its reference and against what the machine's memory can deliver?

    python benchmarks/operators.py [--json] [--threads 1] [--batch 4] [--length 2048] [--channels 1536]

"bandwidth" is bytes that must be moved at least (each input read once, each output written once) over the
time, as a share of the speed at which this machine reads memory, measured in the same run. References are
timed on the first steps only, and scaled by the length; long_convolution's is torch.fft. Outputs are fresh
tensors, as in training: where the system hands out new pages for them, that costs more than a memory-bound
kernel itself.
"""

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from adder.ops.diagonal_kernel import diagonal_kernel
from adder.ops.diagonal_kernel.reference import diagonal_kernel_reference
from adder.ops.dtypes import arithmetic
from adder.ops.gated_norm import gated_norm, rms_norm
from adder.ops.gated_norm.reference import gated_norm_reference, rms_norm_reference
from adder.ops.linear import linear
from adder.ops.linear_scan import linear_scan
from adder.ops.linear_scan.reference import linear_scan_reference
from adder.ops.long_convolution import long_convolution
from adder.ops.native import status
from adder.ops.quantized_linear import quantize, quantized_linear
from adder.ops.quantized_linear.reference import quantized_linear_reference
from adder.ops.selective_scan import selective_scan
from adder.ops.selective_scan.reference import selective_scan_reference
from adder.ops.short_convolution import short_convolution
from adder.ops.short_convolution.reference import short_convolution_reference
from timing import median_seconds

STATE_SIZE = 16


@dataclass
class Case:
    """One operator with its inputs: those to differentiate by come first, and outputs are of x's size."""

    name: str
    operator: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    loops: bool = False  # the reference walks through time: it is timed on its first steps only
    weight_bytes: int | None = None  # it has rounded weights of this size, and no gradient

    def shorter(self, steps: int) -> tuple[Tensor, ...]:
        """Return the inputs of the first steps."""
        return tuple(each[:, :steps].clone() if each.ndim == 3 else each for each in self.inputs)


def cases(b: int, length: int, d: int, dtype: torch.dtype) -> list[Case]:
    """Return every operator at one size; the scan over states gets a batch of one."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype)

    x, z, weight, taps = (
        normal(b, length, d),
        normal(b, length, d),
        torch.ones(d),
        normal(d, 4).float(),
    )
    decay, kernels = (
        torch.rand(b, length, d).to(dtype),
        torch.randn(d, length).to(arithmetic(dtype)),
    )
    u, delta = normal(1, length, d), torch.rand(1, length, d).to(dtype)
    A = -torch.arange(1.0, STATE_SIZE + 1).repeat(d, 1)
    B, C = normal(1, length, STATE_SIZE), normal(1, length, STATE_SIZE)
    matrix = normal(d // 2, d)
    h, m = d // 8, 32
    real = torch.float64 if dtype == torch.float64 else torch.float32
    poles = torch.complex(-torch.ones(h, m, dtype=real), torch.arange(m, dtype=real).repeat(h, 1))
    weights = torch.randn(1, h, m, dtype=poles.dtype)
    step = torch.logspace(-3, -1, h, dtype=real)
    return [
        Case("linear, beside F.linear", linear, F.linear, (x, matrix)),
        Case(
            "linear_scan",
            lambda a, x: linear_scan(a, x)[0],
            lambda a, x: linear_scan_reference(a, x)[0],
            (decay, x),
            loops=True,
        ),
        Case(
            "short_convolution silu",
            lambda x, w, bias: short_convolution(x, w, bias, activation="silu")[0],
            lambda x, w, bias: short_convolution_reference(x, w, bias, activation="silu")[0],
            (x, taps, torch.zeros(d)),
        ),
        Case("long_convolution", long_convolution, fourier_convolution, (x, kernels)),
        Case(
            "rms_norm",
            lambda x, w: rms_norm(x, w, eps=1e-5),
            lambda x, w: rms_norm_reference(x, w, eps=1e-5),
            (x, weight),
        ),
        Case(
            "gated_norm",
            lambda y, z, w: gated_norm(y, z, w, eps=1e-5),
            lambda y, z, w: gated_norm_reference(y, z, w, eps=1e-5),
            (x, z, weight),
        ),
        Case(
            "selective_scan n=16",
            lambda u, delta, A, B, C: selective_scan(u, delta, A, B, C)[0],
            lambda u, delta, A, B, C: selective_scan_reference(u, delta, A, B, C)[0],
            (u, delta, A, B, C),
            loops=True,
        ),
        Case(
            "diagonal_kernel n=64",
            lambda A, B, C, dt: diagonal_kernel(A, B, C, dt, length),
            lambda A, B, C, dt: diagonal_kernel_reference(A, B, C, dt, length),
            (poles, torch.ones_like(poles), weights, step),
        ),
        *(
            Case(
                f"quantized_linear {scheme}, {many} x",
                lambda x, q=q: quantized_linear(x, q),
                lambda x, q=q: quantized_linear_reference(x, q),
                (torch.randn(many, d).to(dtype),),
                weight_bytes=q.nbytes,
            )
            for scheme in ("int8", "int4")
            if dtype != torch.float64
            for q in [quantize(torch.randn(2 * d, d), scheme)]
            for many in (1, 512)
        ),
    ]


def fourier_convolution(u: Tensor, K: Tensor) -> Tensor:
    """Return the long convolution as it is usually written: its direct sum would take minutes."""
    length = u.shape[1]
    spectrum = torch.fft.rfft(u.mT.to(K.dtype), n=2 * length) * torch.fft.rfft(K, n=2 * length)
    return torch.fft.irfft(spectrum, n=2 * length)[..., :length].mT.to(u.dtype)


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call, after one that does not count."""
    return median_seconds({"call": call}, repeats=repeats)["call"]


def read_bandwidth() -> float:
    """Return bytes per second at which this machine sums 512 MB that no cache holds."""
    data = torch.ones(1 << 27)
    return data.numel() * data.element_size() / seconds(data.sum, 5)


def forward_and_backward(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> Callable[[], object]:
    """Return a call that computes the output and the gradient of every input."""
    leaves = [each.clone().requires_grad_() for each in inputs]
    gradient = torch.randn_like(function(*inputs))
    return lambda: torch.autograd.grad(function(*leaves), leaves, gradient)


def measure(case: Case, repeats: int, peak: float, steps: int) -> list[dict[str, object]]:
    """Time one operator forward, and forward with backward; its reference on so many steps."""
    short = case.shorter(steps) if case.loops else case.inputs
    scale = case.inputs[0].shape[1] / short[0].shape[1]
    read = sum(each.numel() * each.element_size() for each in case.inputs)
    with torch.no_grad():
        out = case.operator(*case.inputs)
        forward = seconds(lambda: case.operator(*case.inputs), repeats)
        forward_reference = scale * seconds(lambda: case.reference(*short), 3)
    once = read + out.numel() * out.element_size() + (case.weight_bytes or 0)
    moved, times = {"forward": once}, {"forward": (forward, forward_reference)}
    if case.weight_bytes is None:
        both = seconds(forward_and_backward(case.operator, case.inputs), repeats)
        both_reference = scale * seconds(forward_and_backward(case.reference, short), 3)
        moved["forward + backward"] = 2 * once + read
        times["forward + backward"] = (both, both_reference)
    return [
        {
            "operator": case.name,
            "pass": name,
            "milliseconds": 1e3 * ours,
            "reference_milliseconds": 1e3 * theirs,
            "times_faster": theirs / ours,
            "gigabytes_per_second": moved[name] / ours / 1e9,
            "of_read_bandwidth": moved[name] / ours / peak,
        }
        for name, (ours, theirs) in times.items()
    ]


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description="Time every operator.")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--channels", type=int, default=1536)
    parser.add_argument("--dtype", choices=["float32", "float64", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--reference-steps", type=int, default=64)
    parser.add_argument("--only", default="", help="operators whose name starts with this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    peak = read_bandwidth()
    sizes = (options.batch, options.length, options.channels)
    results = [
        row
        for case in cases(*sizes, getattr(torch, options.dtype))
        if case.name.startswith(options.only)
        for row in measure(case, options.repeats, peak, options.reference_steps)
    ]
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": options.threads,
        "isa": status().isa,
        "sizes": sizes,
        "dtype": options.dtype,
        "read_gigabytes_per_second": peak / 1e9,
    }
    if options.json:
        print(json.dumps({"machine": machine, "results": results}))
        return
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(
        f"{'operator':24}{'pass':20}{'ms':>9}{'reference':>11}{'faster':>8}{'GB/s':>8}{'bandwidth':>11}"
    )
    for row in results:
        print(
            f"{row['operator']:24}{row['pass']:20}{row['milliseconds']:9.2f}"
            f"{row['reference_milliseconds']:11.1f}{row['times_faster']:8.1f}"
            f"{row['gigabytes_per_second']:8.1f}{row['of_read_bandwidth']:11.0%}"
        )


if __name__ == "__main__":
    main()
