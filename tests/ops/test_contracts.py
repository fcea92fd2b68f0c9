"""What every operator owes PyTorch: to be right under a transform or to refuse it, and outputs as its fake promises."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from inputs import normals, seq_idx_of
from torch import Tensor
from torch.autograd import forward_ad

from adder.ops import (
    diagonal_kernel,
    dplr_kernel,
    gated_norm,
    linear,
    linear_scan,
    long_convolution,
    quantize,
    quantized_linear,
    rms_norm,
    selective_scan,
    short_convolution,
    state_space_dual,
)

Call = Callable[[Tensor], Tensor]
B, L, D, N = 2, 40, 6, 4


def calls() -> dict[str, Call]:
    """Return each operator as a function of its signal (b l d) alone."""
    a, weight, A, projection = normals(1, (B, L, D), (D,), (D, N), (B, L, N))
    taps, before = normals(2, (2, D, L), (B, N - 1, D))
    steps, decays = a.abs(), -A.exp()
    modes = steps[0]
    rounded = quantize(A.t(), "int4")
    return {
        "linear": lambda x: linear(x, A.t()),
        "linear_scan": lambda x: linear_scan(steps.tanh(), x)[0],
        "selective_scan": lambda x: selective_scan(x, steps, decays, projection, projection)[0],
        "state_space_dual": lambda x: state_space_dual(
            x.unflatten(2, (3, 2)), steps[..., :3], decays[:3, 0], *[projection.unsqueeze(2)] * 2
        )[0].flatten(2),
        "short_convolution": lambda x: short_convolution(x, A, activation="silu")[0],
        "long_convolution": lambda x: long_convolution(x, taps),
        "long_convolution state": lambda x: long_convolution(x, A, state=before)[0],
        "gated_norm": lambda x: gated_norm(x, a, weight, eps=1e-5),
        "rms_norm": lambda x: rms_norm(x, weight, eps=1e-5),
        "diagonal_kernel": lambda x: diagonal_kernel(-modes, modes, x, modes, 9),
        "dplr_kernel": lambda x: dplr_kernel(
            -modes + 1j, 0j * x, modes + 0j, x + 1j, modes[:, 0], 9
        ),
        "quantized_linear": lambda x: quantized_linear(x, rounded),
    }


@pytest.fixture(params=calls())
def call(request: pytest.FixtureRequest) -> Call:
    """One operator after another."""
    return calls()[request.param]


def test_forward_mode_is_refused(call: Call) -> None:
    """PyTorch drops tangents at an operator without a forward formula: a derivative of zero, and no word."""
    (x,) = normals(0, (B, L, D))
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(call, (x,), (torch.ones_like(x),))
    with (
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="no forward-mode derivative"),
    ):
        call(forward_ad.make_dual(x, torch.ones_like(x)))


# linear has derivatives of any order (test_linear), quantized_linear none
@pytest.mark.parametrize("name", sorted(calls().keys() - {"linear", "quantized_linear"}))
def test_a_second_derivative_is_refused(name: str) -> None:
    call = calls()[name]
    (x,) = normals(0, (B, L, D))
    x.requires_grad_()
    (grad,) = torch.autograd.grad(call(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        grad.sum().backward()


@pytest.mark.usefixtures("served")
def test_vmap_is_a_loop(call: Call) -> None:
    (xs,) = normals(0, (3, B, L, D))
    torch.testing.assert_close(torch.vmap(call)(xs), torch.stack([call(x) for x in xs]))


OPERATORS = torch.ops.adder


def permuted(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor whose axes lie in memory in reverse order."""
    (x,) = normals(seed, shape[::-1])
    return x.to(dtype).permute(*range(len(shape))[::-1])


def both_passes(dtype: torch.dtype, length: int) -> list[tuple[Any, tuple[Any, ...]]]:
    """Return (operator, arguments) for the forward and the backward pass of each, with and without what is optional."""
    signal, real = partial(permuted, dtype=dtype), permuted
    u, v, dy = (signal(i, B, length, D) for i in range(3))
    A, state, dlast = -real(3, D, N).abs(), real(4, B, D, N), real(5, B, D, N)
    P, vector, row = signal(6, B, length, 1, N), real(7, D), real(8, B, D)
    seq_idx = seq_idx_of(B, [length]).t().contiguous().t()
    passes: list[tuple[Any, tuple[Any, ...]]] = []
    for full in (True, False):

        def given(*values: Any, full: bool = full) -> tuple[Any, ...]:
            return values if full else (None,) * len(values)

        inputs = (u, v.abs(), A, P, P, *given(vector, v, vector), True, *given(state, seq_idx))
        saved = OPERATORS.selective_scan(*inputs, True)[2]
        passes += [
            (OPERATORS.selective_scan, (*inputs, True)),
            (OPERATORS.selective_scan_backward, (*inputs, saved, dy, dlast)),
        ]
        heads = signal(19, B, length, 3, 2), v[..., :3].abs(), -vector[:3].abs(), P, P
        optional = real(20, 3, 2) if full else vector[:3], signal(21, B, length, 3, 2), vector[:3]
        numbers = (full, 0.125, 2.0, 16)
        inputs = (*heads, *given(*optional), *numbers, *given(real(22, B, 3, 2, N), seq_idx))
        saved = OPERATORS.state_space_dual(*inputs, True)[2]
        grads = signal(23, B, length, 3, 2), real(24, B, 3, 2, N)
        passes += [
            (OPERATORS.state_space_dual, (*inputs, True)),
            (OPERATORS.state_space_dual_backward, (*inputs, saved, *grads)),
        ]
        start, packing = given(row, seq_idx)
        h = OPERATORS.linear_scan(u, v, start, full, packing)[0]
        passes += [
            (OPERATORS.linear_scan, (u, v, start, full, packing)),
            (OPERATORS.linear_scan_backward, (u, h, start, full, packing, dy, row)),
        ]
        inputs = (u, real(9, D, 4), *given(vector, "silu", signal(10, B, 3, D), seq_idx))
        passes += [
            (OPERATORS.short_convolution, inputs),
            (OPERATORS.short_convolution_backward, (*inputs, dy, signal(11, B, 3, D))),
        ]
        kernels, (start,) = real(12, 2, D, 50), given(signal(13, B, 49, D))
        grad = signal(14, B, length, 2 * D)
        passes += [
            (OPERATORS.long_convolution, (u, kernels, start)),
            (OPERATORS.long_convolution_backward, (u, kernels, start, grad)),
        ]
        kind = torch.complex64 if full else torch.float32
        modes = (each.to(kind) for each in (A, real(12, D, N), real(13, B, D, N)))
        inputs = (*modes, real(14, D, N).abs() if full else vector.abs(), length, "zoh")
        passes += [
            (OPERATORS.diagonal_kernel, inputs),
            (OPERATORS.diagonal_kernel_backward, (*inputs, real(15, B, D, length))),
        ]
        rank = real(16, int(full), D, N) + 0j
        inputs = (A + 1j, rank, real(12, D, N) + 0j, real(13, B, D, N) + 0j, vector.abs(), length)
        passes += [
            (OPERATORS.dplr_kernel, inputs),
            (OPERATORS.dplr_kernel_backward, (*inputs[:-1], real(15, B, D, length))),
        ]
        inputs = (u, *given(v), vector, 1e-5, D, full)
        passes += [
            (OPERATORS.gated_norm, inputs),
            (OPERATORS.gated_norm_backward, (*inputs, dy)),
        ]
        rounded = quantize(real(16, 20, D), "int8" if full else "int4")
        vectors, layout = signal(17, length, D), (20, D, rounded.scheme)
        inputs = (vectors, rounded.codes, rounded.scales, *layout, *given(real(18, 20)))
        passes.append((OPERATORS.quantized_linear, inputs))
    return passes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 40])
@pytest.mark.usefixtures("served")
def test_outputs_are_as_their_fakes_promise(dtype: torch.dtype, length: int) -> None:
    """Shapes, types and strides, whatever the strides of the inputs: compiled code relies on them."""
    for operator, arguments in both_passes(dtype, length):
        torch.library.opcheck(
            operator.default, arguments, test_utils=("test_schema", "test_faketensor")
        )
