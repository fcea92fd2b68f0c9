"""Each operator against its reference and against what this machine can do at most.

The limit of an operator is the larger of two times: of reading its inputs and writing its output once at the
speed at which this machine reads memory, and of the multiplications and additions that it cannot do without
at the speed of its matrix products. References are timed on the first steps only where they walk through
time, and scaled by the length; linear's is F.linear, long_convolution's torch.fft. Outputs are fresh tensors,
as in training: where the system hands out new pages for them, that costs more than a memory-bound kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adder.benchmark.timing import median_seconds
from adder.ops.diagonal_kernel import diagonal_kernel
from adder.ops.diagonal_kernel.reference import diagonal_kernel_reference
from adder.ops.dplr_kernel import dplr_kernel
from adder.ops.dplr_kernel.reference import dplr_kernel_reference
from adder.ops.dtypes import arithmetic
from adder.ops.gated_norm import gated_norm, rms_norm
from adder.ops.gated_norm.reference import gated_norm_reference, rms_norm_reference
from adder.ops.linear import linear
from adder.ops.linear_scan import linear_scan
from adder.ops.linear_scan.reference import linear_scan_reference
from adder.ops.long_convolution import long_convolution
from adder.ops.quantized_linear import quantize, quantized_linear
from adder.ops.quantized_linear.reference import quantized_linear_reference
from adder.ops.selective_scan import selective_scan
from adder.ops.selective_scan.reference import selective_scan_reference
from adder.ops.short_convolution import short_convolution
from adder.ops.short_convolution.reference import short_convolution_reference
from adder.ops.state_space_dual import state_space_dual
from adder.ops.state_space_dual.reference import state_space_dual_reference

STATE_SIZE = 16
HEAD, HEAD_STATE = 64, 128  # channels and states of a head of Mamba-2


@dataclass
class Case:
    """One operator with its inputs: those to differentiate by come first, and outputs are of x's size."""

    name: str
    operator: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    loops: bool = False  # the reference walks through time: it is timed on its first steps only
    weight_bytes: int | None = None  # it has rounded weights of this size, and no gradient
    flops: int = 0  # operations of a forward pass, where memory alone is not the limit

    def shorter(self, steps: int) -> tuple[Tensor, ...]:
        """Return the inputs of the first steps."""
        return tuple(each[:, :steps].clone() if each.ndim > 2 else each for each in self.inputs)


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
    low_rank = torch.full((1, h, m), 0.5, dtype=poles.dtype)
    step = torch.logspace(-3, -1, h, dtype=real)
    return [
        Case(
            "linear",
            linear,
            F.linear,
            (x, matrix),
            flops=2 * b * length * d * (d // 2),
        ),
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
            # delta A and its exponential; delta B u; the update; the product with C.
            flops=8 * length * d * STATE_SIZE,
        ),
        Case(
            "state_space_dual n=128",
            lambda x, dt, A, B, C: state_space_dual(x, dt, A, B, C)[0],
            lambda x, dt, A, B, C: state_space_dual_reference(x, dt, A, B, C)[0],
            heads(length, d, dtype),
            loops=True,
            # x B^T into the state, and the product with C.
            flops=4 * length * d * HEAD_STATE,
        ),
        Case(
            "diagonal_kernel n=64",
            lambda A, B, C, dt: diagonal_kernel(A, B, C, dt, length),
            lambda A, B, C, dt: diagonal_kernel_reference(A, B, C, dt, length),
            (poles, torch.ones_like(poles), weights, step),
            flops=8
            * h
            * m
            * length,  # one complex multiplication and addition for each mode and tap
        ),
        Case(
            "dplr_kernel n=64",
            lambda A, P, B, C, dt: dplr_kernel(A, P, B, C, dt, length),
            lambda A, P, B, C, dt: dplr_kernel_reference(A, P, B, C, dt, length),
            (poles, low_rank, torch.ones_like(poles), weights, step),
        ),
        *(
            Case(
                f"quantized_linear {scheme} {many}",
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


def heads(length: int, d: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return x, dt, A, B and C of one layer of Mamba-2 with d inner channels."""
    h = max(d // HEAD, 1)
    x, dt = torch.randn(1, length, h, d // h), torch.rand(1, length, h) / 8
    B, C = torch.randn(2, 1, length, 1, HEAD_STATE) / HEAD_STATE**0.5
    x, dt, B, C = (each.to(dtype) for each in (x, dt, B, C))
    return x, dt, -torch.arange(1.0, h + 1), B, C


def fourier_convolution(u: Tensor, K: Tensor) -> Tensor:
    """Return the long convolution as it is usually written: its direct sum would take minutes."""
    length = u.shape[1]
    spectrum = torch.fft.rfft(u.mT.to(K.dtype), n=2 * length) * torch.fft.rfft(K, n=2 * length)
    y: Tensor = torch.fft.irfft(spectrum, n=2 * length)[..., :length]
    return y.mT.to(u.dtype)


def forward_and_backward(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> Callable[[], object]:
    """Return a call that computes the output and the gradient of every input."""
    leaves = [each.clone().requires_grad_() for each in inputs]
    gradient = torch.randn_like(function(*inputs))
    return lambda: torch.autograd.grad(function(*leaves), leaves, gradient)


REPEATS, REFERENCE_REPEATS, REFERENCE_STEPS = 5, 3, 64
SIZES, QUICK_SIZES = (2, 2048, 1536), (1, 512, 256)


def names() -> list[str]:
    """Return what `of_name` takes."""
    return [case.name for case in cases(1, 8, 8, torch.float32)]


def of_name(name: str, quick: bool) -> list[dict[str, Any]]:
    """Measure one operator at the sizes of `adder bench`, float32."""
    torch.manual_seed(0)
    sizes = QUICK_SIZES if quick else SIZES
    return measure(next(each for each in cases(*sizes, torch.float32) if each.name == name))


def measure(
    case: Case, repeats: int = REPEATS, steps: int = REFERENCE_STEPS
) -> list[dict[str, Any]]:
    """Time one operator forward, and forward with backward; its reference on so many steps.

    `seconds` and `reference_seconds` are of turns taken together, for their ratio; `alone_seconds` of more
    turns of the operator alone, for its share of the limit. Bytes and operations are those of `limit`.
    """
    short = case.shorter(steps) if case.loops else case.inputs
    scale = case.inputs[0].shape[1] / short[0].shape[1] if case.loops else 1.0
    read = sum(each.numel() * each.element_size() for each in case.inputs)
    with torch.no_grad():
        out = case.operator(*case.inputs)
        forward = _both(
            lambda: case.operator(*case.inputs), lambda: case.reference(*short), repeats
        )
    once = read + out.numel() * out.element_size() + (case.weight_bytes or 0)
    passes = [("forward", forward, once, case.flops)]
    if case.weight_bytes is None:
        backward = _both(
            forward_and_backward(case.operator, case.inputs),
            forward_and_backward(case.reference, short),
            repeats,
        )
        passes.append(("forward + backward", backward, 2 * once + read, 3 * case.flops))
    return [
        {
            "operator": case.name,
            "pass": name,
            "seconds": ours,
            "reference_seconds": scale * theirs,
            "alone_seconds": alone,
            "bytes": moved,
            "flops": flops,
        }
        for name, (ours, theirs, alone), moved, flops in passes
    ]


def limit(row: dict[str, Any], bandwidth: float, peak: float | None) -> float:
    """Seconds below which no implementation can come on this machine."""
    memory: float = row["bytes"] / bandwidth
    return max(memory, row["flops"] / peak) if peak else memory


def _both(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int
) -> tuple[float, float, float]:
    """Median seconds of an operator and of its reference in a few turns together, then of ours alone."""
    few = median_seconds({"ours": ours, "theirs": theirs}, repeats=min(repeats, REFERENCE_REPEATS))
    alone = median_seconds({"ours": ours}, repeats=repeats)
    return few["ours"], few["theirs"], alone["ours"]
