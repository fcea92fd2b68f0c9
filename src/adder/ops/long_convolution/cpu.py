"""The C++ kernels of the long convolution: which calls they serve, and how the tensors reach them."""

from typing import Any

from torch import Tensor

from adder.ops.native import STORAGE, address, rows, side_by_side, threads


def serves(kernels: Any, u: Tensor, K: Tensor, state: Tensor | None) -> bool:
    """The kernels serve float32, float64 and bfloat16, and as many taps as a transform may span."""
    taps = K.shape[2] if state is not None else min(K.shape[2], u.shape[1])
    return u.dtype in STORAGE and taps <= kernels.long_convolution_most_taps


def forward(kernels: Any, u: Tensor, K: Tensor, state: Tensor | None) -> Tensor:
    """Return y (b, l, c h) in u's type; K (c h k) in the type of arithmetic, state (b, k-1, h) in u's."""
    (b, length, h), (c, _, k) = u.shape, K.shape
    sizes, given = (b, length, h, c, k), state is not None
    u, K = side_by_side(u), K.contiguous()
    state = None if state is None else state.contiguous()
    y = u.new_empty(b, length, c * h)
    spectra, _ = kernels.long_convolution_memory(STORAGE[u.dtype], sizes, given, False)
    kept = K.new_empty(spectra)
    kernels.long_convolution(
        STORAGE[u.dtype],
        threads(),
        sizes,
        given,
        rows(u),
        address(K),
        address(state),
        rows(y),
        address(kept),
    )
    return y


def backward(
    kernels: Any, u: Tensor, K: Tensor, state: Tensor | None, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of u and of the state in u's type, and of K; dy is (b, l, c h)."""
    (b, length, h), (c, _, k) = u.shape, K.shape
    sizes, given = (b, length, h, c, k), state is not None
    u, K, dy = side_by_side(u), K.contiguous(), side_by_side(dy)
    state = None if state is None else state.contiguous()
    du, dK = u.new_empty(b, length, h), K.new_empty(c, h, k)
    dstate = u.new_empty(b, k - 1 if given else 0, h)
    spectra, parts = kernels.long_convolution_memory(STORAGE[u.dtype], sizes, given, True)
    kept, summed = K.new_empty(spectra), K.new_empty(parts)
    kernels.long_convolution_backward(
        STORAGE[u.dtype],
        threads(),
        sizes,
        given,
        rows(u),
        address(K),
        address(state),
        rows(dy),
        rows(du),
        address(dK),
        address(dstate),
        address(kept),
        address(summed),
    )
    return du, dK, dstate
