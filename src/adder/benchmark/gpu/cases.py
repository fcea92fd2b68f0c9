"""The operators that are measured: their inputs, drawn at random, and the least work that each has to do."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from adder.benchmark.gpu import peers as functions
from adder.benchmark.gpu.jobs import size_words
from adder.benchmark.gpu.limits import Work
from adder.benchmark.gpu.peers import EPS, TAPS, is_there
from adder.benchmark.gpu.plan import Plan
from adder.benchmark.operators import fourier_convolution
from adder.ops import (
    diagonal_kernel,
    dplr_kernel,
    gated_norm,
    long_convolution,
    rms_norm,
    selective_scan,
    short_convolution,
    state_space_dual,
)

DTYPE = torch.bfloat16
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Case:
    """An operator of somebody at one size. Gradients of every input are computed in the backward pass.

    exponentials, flops: of a forward pass; a backward pass computes the exponentials again, since nothing of their
    number may be stored, and has two products for each one. `type`: what the products are of.
    ours: of a peer, adder's function of the same inputs, which its result is held against; across: the peer takes
    signals (b d l) where adder takes (b l d).
    """

    name: str
    size: str
    subject: str
    function: Callable[..., Tensor]
    draw: Callable[[], tuple[Tensor, ...]]
    exponentials: float = 0.0
    flops: float = 0.0
    type: str = "bfloat16"
    backward: bool = True
    graph: bool = True
    ours: Callable[..., Tensor] | None = None
    across: bool = False

    def differs(self, inputs: tuple[Tensor, ...]) -> dict[str, float]:
        """|theirs - ours| / |ours|, and what it may be: four times what numbers of the coarsest input are apart.

        Each side rounds to that type what it gives out, and factors of its products.
        """
        if self.ours is None:
            return {}
        theirs = self.function(*inputs)
        if self.across:
            inputs = tuple(each.mT.contiguous() if each.ndim == 3 else each for each in inputs)
        y = self.ours(*inputs)
        y = y.mT if self.across else y
        may = 4 * max(torch.finfo(each.dtype).eps for each in inputs)
        if theirs.shape != y.shape:
            return {"differs": math.inf, "may_differ": may}
        far, size = torch.linalg.vector_norm(theirs.float() - y.float()), y.float().norm()
        return {"differs": float(far / size), "may_differ": may}

    def work(self, read: int, written: int, backward: bool) -> Work:
        """Work for so many bytes of inputs and of output. Backward reads both once more and writes the gradients."""
        if not backward:
            return Work(read + written, self.exponentials, self.flops, self.type)
        moved = 3 * read + 2 * written
        return Work(moved, 2 * self.exponentials, 3 * self.flops, self.type)


def normal(device: torch.device, *shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
    """Draw a tensor."""
    return torch.randn(shape, device=device).to(dtype)


def our_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """selective_scan with everything that a block of Mamba gives it."""
    return selective_scan(u, delta, A, B, C, D, z=z, delta_bias=bias, delta_softplus=True)[0]


def draw_scan(
    device: torch.device, shape: Shape, n: int, channels_last: bool = True
) -> tuple[Tensor, ...]:
    """Inputs of `our_scan` (b l d), or of mamba_ssm's on (b d l)."""
    b, l, d = shape
    signal, projection = (b, l, d), (b, l, n)
    if not channels_last:
        signal, projection = (b, d, l), (b, n, l)
    u, delta, z = (normal(device, *signal) for _ in range(3))
    B, C = (normal(device, *projection) for _ in range(2))
    D, bias = (normal(device, d, dtype=torch.float32) for _ in range(2))
    A = -torch.rand(d, n, device=device) * n
    return u, delta, A, B, C, D, z, bias


def scans(plan: Plan, peers: dict[str, str], shape: Shape) -> Iterator[Case]:
    """selective_scan and mamba_ssm's."""
    size, count = size_words(*shape), math.prod(shape) * plan.states
    ours = partial(draw_scan, plan.device, shape, plan.states)
    yield Case("selective_scan", size, "adder", our_scan, ours, exponentials=count)
    if is_there(peers, "mamba_ssm"):
        theirs = partial(ours, channels_last=False)
        function = functions.mamba_ssm_scan
        yield Case(
            *("selective_scan", size, "mamba_ssm", function, theirs),
            exponentials=count,
            ours=our_scan,
            across=True,
        )


def loops(plan: Plan, shape: Shape) -> Iterator[Case]:
    """selective_scan and a compiled loop over time, forward alone."""
    size, count = size_words(*shape), math.prod(shape) * plan.states
    draw = partial(draw_scan, plan.device, shape, plan.states)
    for subject, function in (("adder", our_scan), ("compiled loop", _compiled_loop())):
        yield Case(
            *("selective_scan", size, subject, function, draw),
            exponentials=count,
            backward=False,
            ours=None if subject == "adder" else our_scan,
        )


def _compiled_loop() -> Callable[..., Tensor]:
    made: list[Callable[..., Tensor]] = []

    def call(*inputs: Tensor) -> Tensor:
        if not made:
            made.append(torch.compile(functions.torch_loop, dynamic=False))
        return made[0](*inputs)

    return call


def our_dual(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> Tensor:
    """state_space_dual without a gate."""
    return state_space_dual(x, dt, A, B, C, D, dt_bias=bias, dt_softplus=True)[0]


def duals(plan: Plan, peers: dict[str, str], shape: Shape) -> Iterator[Case]:
    """state_space_dual, mamba_ssm's and fla's, with one group."""
    b, l, h = shape
    p, n, device = plan.head, plan.head_states, plan.device

    def draw() -> tuple[Tensor, ...]:
        x, dt = normal(device, b, l, h, p), normal(device, b, l, h)
        B, C = (normal(device, b, l, 1, n) for _ in range(2))
        D, bias = (normal(device, h, dtype=torch.float32) for _ in range(2))
        return x, dt, -torch.rand(h, device=device) * 15 - 1, B, C, D, bias

    # A multiply-add for the state and one for its output, for each head, step, channel and state.
    flops = 4.0 * b * l * h * p * n
    found = [("adder", our_dual)]
    found += [("mamba_ssm", functions.mamba_ssm_dual)] if is_there(peers, "mamba_ssm") else []
    found += [("fla", functions.fla_dual)] if is_there(peers, "fla") else []
    for subject, function in found:
        yield Case(
            *("state_space_dual", size_words(*shape), subject, function, draw),
            flops=flops,
            ours=None if subject == "adder" else our_dual,
        )


def memory_bound(plan: Plan, peers: dict[str, str], shape: Shape) -> Iterator[Case]:
    """The operators that do little but move memory, beside PyTorch's."""
    b, l, d = shape
    size, device = size_words(*shape), plan.device

    def draw(*shapes: tuple[int, ...]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: tuple(normal(device, *each) for each in shapes)

    convolution = draw((b, l, d), (d, TAPS), (d,))
    across = draw((b, d, l), (d, TAPS), (d,))
    name = "short_convolution"
    yield Case(name, size, "adder", _convolve, convolution)
    if is_there(peers, "causal_conv1d"):
        function = functions.causal_conv1d_convolution
        yield Case(name, size, "causal_conv1d", function, across, ours=_convolve, across=True)
    function = functions.torch_convolution
    yield Case(name, size, "torch", function, across, ours=_convolve, across=True)
    for name, count, ours, theirs in (
        ("rms_norm", 1, rms_norm, functions.torch_norm),
        ("gated_norm", 2, gated_norm, functions.torch_gated_norm),
    ):
        inputs = draw(*[(b, l, d)] * count, (d,))
        function = partial(ours, eps=EPS)
        yield Case(name, size, "adder", function, inputs)
        yield Case(name, size, "torch", theirs, inputs, ours=function)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return short_convolution(x, weight, bias, activation="silu")[0]


def kernels(plan: Plan, h: int, n: int, l: int) -> Iterator[Case]:
    """S4D's and S4's kernels and the convolution with them, beside PyTorch's transform."""
    device, m, size = plan.device, n // 2, size_words(h, n, l)

    def poles() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        imaginary = torch.arange(m, device=device, dtype=torch.float32).repeat(h, 1)
        A = torch.complex(torch.full_like(imaginary, -0.5), math.pi * imaginary)
        B, C = (torch.randn(shape, device=device, dtype=A.dtype) for shape in ((h, m), (1, h, m)))
        return A, B, C, torch.logspace(-3, -1, h, device=device)

    def low_rank() -> tuple[Tensor, ...]:
        A, B, C, dt = poles()
        return A, torch.full((1, h, m), 0.5, device=device, dtype=A.dtype), B, C, dt

    yield Case(
        "diagonal_kernel",
        size,
        "adder",
        lambda A, B, C, dt: diagonal_kernel(A, B, C, dt, l),
        poles,
        flops=4.0 * h * m * l,
        type="float32",
    )
    yield Case(
        "dplr_kernel",
        size,
        "adder",
        lambda A, P, B, C, dt: dplr_kernel(A, P, B, C, dt, l),
        low_rank,
        flops=2.0 * h * n * l,  # n real multiply-adds a tap, as for m = n / 2 complex poles
        type="float32",
        graph=False,  # its systems of equations are solved by a library that waits for the host
    )

    def signals() -> tuple[Tensor, ...]:
        return normal(device, 8, l, h), normal(device, h, l, dtype=torch.float32)

    size = size_words(8, l, h)
    yield Case("long_convolution", size, "adder", long_convolution, signals)
    peer = fourier_convolution
    yield Case("long_convolution", size, "torch", peer, signals, ours=long_convolution)
