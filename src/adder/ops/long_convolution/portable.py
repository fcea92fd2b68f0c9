"""The long convolution and its adjoint by PyTorch's Fourier transform, a few channels at a time.

A signal of l + k - 1 steps, transformed at no less than that length, wraps around into outputs that nobody reads.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 1 << 22  # numbers in one padded block of channels


def forward(u: Tensor, K: Tensor, state: Tensor | None) -> Tensor:
    """Return y (b, l, c h) in u's type; K (c h k) in the type of arithmetic, state (b, k-1, h)."""
    (b, length, h), c = u.shape, K.shape[0]
    taps, before = _reach(K, length, state)
    size = fast_length(length + taps - 1)
    y = u.new_empty(b, length, c, h)
    for some in _blocks(h, b * c * size):
        signal, kernel = _signal(u, state, some, K.dtype), K[:, some, :taps]
        spectrum = torch.fft.rfft(signal, n=size).unsqueeze(1) * torch.fft.rfft(kernel, n=size)
        whole = torch.fft.irfft(spectrum, n=size)[..., before : before + length]
        y[..., some] = whole.permute(0, 3, 1, 2)
    return y.flatten(2)


def backward(
    u: Tensor, K: Tensor, state: Tensor | None, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of u and of the state in u's type, and of K; dy is (b, l, c h)."""
    (b, length, h), c = u.shape, K.shape[0]
    taps, before = _reach(K, length, state)
    size = fast_length(length + taps - 1)
    du, dstate = u.new_empty(u.shape), u.new_empty(b, before, h)
    dK = K.new_zeros(K.shape)
    for some in _blocks(h, b * c * size):
        signal, kernel = _signal(u, state, some, K.dtype), K[:, some, :taps]
        grad = dy.view(b, length, c, h)[..., some].permute(0, 2, 3, 1).to(K.dtype)
        of_grad = torch.fft.rfft(torch.nn.functional.pad(grad, (before, 0)), n=size)
        of_signal = torch.fft.rfft(signal, n=size).conj_physical().unsqueeze(1)
        of_kernel = torch.fft.rfft(kernel, n=size).conj_physical()
        dK[:, some, :taps] = torch.fft.irfft((of_signal * of_grad).sum(0), n=size)[..., :taps]
        dinputs = torch.fft.irfft((of_kernel * of_grad).sum(1), n=size).mT
        dstate[..., some] = dinputs[:, :before]
        du[..., some] = dinputs[:, before : before + length]
    return du, dK, dstate


def fast_length(least: int) -> int:
    """Return the smallest 2^i 3^j 5^m that is no less than `least`."""
    best = 1 << (least - 1).bit_length()
    five = 1
    while five < best:
        odd = five
        while odd < best:
            best = min(best, odd << max(0, (-(-least // odd) - 1).bit_length()))
            odd *= 3
        five *= 5
    return best


def _reach(K: Tensor, length: int, state: Tensor | None) -> tuple[int, int]:
    """Return how many taps meet an input, and how many inputs lie before the first step."""
    k = K.shape[-1]
    return (min(k, length), 0) if state is None else (k, k - 1)


def _blocks(h: int, each: int) -> Iterator[slice]:
    """Cut h channels into blocks, of which each channel takes `each` numbers."""
    step = max(1, BLOCK // each)
    return (slice(start, min(start + step, h)) for start in range(0, h, step))


def _signal(u: Tensor, state: Tensor | None, some: slice, dtype: torch.dtype) -> Tensor:
    """Return the inputs of some channels with what lies before them, (b, h, l)."""
    signal = u[..., some]
    if state is not None:
        signal = torch.cat([state[..., some], signal], dim=1)
    return signal.mT.to(dtype)
