"""The public long convolution, and the PyTorch operator under it."""

from typing import overload

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from adder.ops import native
from adder.ops.checks import (
    expect,
    expect_floating,
    parameter_dtypes,
    refuse_forward_mode,
    sizes_of,
)
from adder.ops.dtypes import arithmetic
from adder.ops.long_convolution import cpu, portable


@overload
def long_convolution(
    u: Float[Tensor, "b l h"],
    K: Float[Tensor, "c h k"] | Float[Tensor, "h k"],
    *,
    state: None = None,
    seq_idx: None = None,
) -> Float[Tensor, "b l ch"]: ...


@overload
def long_convolution(
    u: Float[Tensor, "b l h"],
    K: Float[Tensor, "c h k"] | Float[Tensor, "h k"],
    *,
    state: Float[Tensor, "b k-1 h"],
    seq_idx: None = None,
) -> tuple[Float[Tensor, "b l ch"], Float[Tensor, "b k-1 h"]]: ...


def long_convolution(
    u: Float[Tensor, "b l h"],
    K: Float[Tensor, "c h k"] | Float[Tensor, "h k"],
    *,
    state: Float[Tensor, "b k-1 h"] | None = None,
    seq_idx: Int32[Tensor, "b l"] | None = None,
) -> Float[Tensor, "b l ch"] | tuple[Float[Tensor, "b l ch"], Float[Tensor, "b k-1 h"]]:
    r"""Convolve each channel with c kernels of its own, causally, by Fourier transform.

        y[t, (c h)] = sum_j K[c, h, j] u[t-j, h]            j = 0 .. k-1

    It is the convolutional view of a linear system whose impulse response is K (Gu et al. 2021,
    arXiv:2111.00396, section 2.4). K[..., 0] meets the present.

    Axes: `b` batch, `l` length, `h` channels, `c` outputs of each channel, `k` taps, from 1 upwards. Taps
    that reach before the beginning, as with k > l, read the state, or zero.

    Args:
        u: the input.
        K: the kernels, in u's type or in the type of arithmetic. (h k) stands for c = 1.
        state: the k-1 inputs before u[0], the oldest first. None means zeros.
        seq_idx: refused unless None. A transform knows no beginnings inside it: run the sequences apart.

    Returns:
        y (b, l, c h) in u's type, c outermost. With a state also the last k-1 inputs, in u's type: pass them
        as `state` to continue, and the parts agree with the whole. To begin, pass zeros. Both carry gradients.

    Raises:
        ValueError: a shape or device disagrees, an axis is empty, or seq_idx was given.
        TypeError: a type disagrees; the messages name the argument.

    Numbers: float32 (float64 for float64 input). The error is a few roundings of the largest output, at every
    step: where outputs differ much in size, the small ones are not small in error. An infinity or a NaN makes
    its whole row NaN, in its channel. Sums over the batch are in a fixed order for any number of threads.
    Cost: about 5 (l + k) log2(l + k) operations for each row and channel; the backward pass takes 1.5 times that.

    Example:
        >>> u = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1)
        >>> K = torch.tensor([[1.0, 10.0]])
        >>> long_convolution(u, K).flatten().tolist()
        [1.0, 12.0, 23.0]
        >>> y, state = long_convolution(u, K, state=torch.full((1, 1, 1), 5.0))
        >>> y.flatten().tolist(), state.flatten().tolist()
        ([51.0, 12.0, 23.0], [3.0])
    """
    name = "long_convolution"
    expect_floating(name, "u", u)
    sizes = sizes_of(name, "u", u, "b l h")
    axes = "h k" if K.ndim == 2 else "c h k"
    sizes = {**sizes_of(name, "K", K, axes), **sizes}
    sizes["k-1"] = sizes["k"] - 1
    parameters = parameter_dtypes(u.dtype)
    expect(name, "K", K, axes, sizes, u, parameters)
    expect(name, "state", state, "b k-1 h", sizes, u, parameters)
    if seq_idx is not None:
        raise ValueError(
            f"{name}: seq_idx was given, expected None: a Fourier transform cannot restart inside; "
            "run the packed sequences apart"
        )
    refuse_forward_mode(name, u, K, state)
    taps = K.to(arithmetic(u.dtype)).reshape(-1, sizes["h"], sizes["k"])
    if state is None:
        return _long_convolution(u, taps, None)
    state = state.to(u.dtype)
    last = torch.cat([state[:, sizes["l"] :], u[:, max(0, sizes["l"] - sizes["k-1"]) :]], dim=1)
    return _long_convolution(u, taps, state), last


def _convolution(u: Tensor, K: Tensor, state: Tensor | None) -> Tensor:
    return portable.forward(u, K, state)


def _adjoint(
    u: Tensor, K: Tensor, state: Tensor | None, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return portable.backward(u, K, state, dy)


_long_convolution = torch.library.custom_op(
    "adder::long_convolution", _convolution, mutates_args=()
)
_long_convolution_backward = torch.library.custom_op(
    "adder::long_convolution_backward", _adjoint, mutates_args=()
)


@_long_convolution.register_fake
def _(u: Tensor, K: Tensor, state: Tensor | None) -> Tensor:
    b, length, h = u.shape
    return u.new_empty(b, length, K.shape[0] * h)


@_long_convolution_backward.register_fake
def _(u: Tensor, K: Tensor, state: Tensor | None, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b, _, h = u.shape
    before = 0 if state is None else K.shape[2] - 1
    return u.new_empty(u.shape), K.new_empty(K.shape), u.new_empty(b, before, h)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy):  # type: ignore[no-untyped-def]
    u, K, state = ctx.saved_tensors
    du, dK, dstate = _long_convolution_backward(u, K, state, dy)
    return du, dK, None if state is None else dstate


_long_convolution.register_autograd(_backward, setup_context=_setup_context)


if (_native := native.module()) is not None:

    @_long_convolution.register_kernel("cpu")
    def _(u, K, state):  # type: ignore[no-untyped-def]
        if cpu.serves(_native, u, K, state):
            return cpu.forward(_native, u, K, state)
        return _convolution(u, K, state)

    @_long_convolution_backward.register_kernel("cpu")
    def _(u, K, state, dy):  # type: ignore[no-untyped-def]
        if cpu.serves(_native, u, K, state):
            return cpu.backward(_native, u, K, state, dy)
        return _adjoint(u, K, state, dy)
