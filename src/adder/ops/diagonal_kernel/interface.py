"""The public kernel of a diagonal model, and the PyTorch operators under it."""

from functools import partial
from importlib.util import find_spec

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from adder.ops import native
from adder.ops.checks import (
    expect,
    expect_length,
    expect_tensors,
    refuse_forward_mode,
    sizes_of,
)
from adder.ops.diagonal_kernel import coefficients, cpu, portable

NAME = "diagonal_kernel"
REAL, COMPLEX = (torch.float32, torch.float64), (torch.complex64, torch.complex128)


def diagonal_kernel(
    A: Float[Tensor, "h m"] | Complex[Tensor, "h m"],
    B: Float[Tensor, "h m"] | Complex[Tensor, "h m"],
    C: Float[Tensor, "c h m"] | Complex[Tensor, "c h m"],
    dt: Float[Tensor, " h"] | Float[Tensor, "h m"],
    length: int,
    *,
    method: str = "zoh",
) -> Float[Tensor, "c h {length}"]:
    r"""Return the convolution kernel of a diagonal state space model: what an impulse of 1 at step 0 gives.

        K[l] = 2 Re sum_j C_j Bbar_j z_j^l        complex A, B, C: one of each conjugate pair
        K[l] =      sum_j C_j Bbar_j z_j^l        real A, B, C: they stand for themselves (EMA)

        "zoh"         z = e^(dt A)                       Bbar = (e^(dt A) - 1) / A  B
        "bilinear"    z = (1 + dt A/2) / (1 - dt A/2)    Bbar = dt / (1 - dt A/2)  B
        "dss"         Bbar z^l = (B / A) softmax(0, dt A, 2 dt A, ... (length - 1) dt A)[l]

    It is a product with a Vandermonde matrix (S4D, Gu et al. 2022, arXiv:2206.11893, section 3.3); "dss" is the
    kernel of DSS-softmax (Gupta et al. 2022, arXiv:2203.14343, proposition 1b), with the factor of 2. In it the
    shape depends on `length`, and A may have a positive real part: the mode then grows towards the last step.

    Axes: c output channels for each input channel, h channels, m modes (half the state size, for complex pairs).

    Args:
        A: the continuous-time diagonal. Real parts above 0 grow; "zoh" and "bilinear" overflow like the model.
        B, C: input and output weights, real where A is real, complex where it is complex.
        dt: step sizes, positive, one for each channel or for each mode.
        length: how many steps of the kernel to return, at least 1.
        method: "zoh", "bilinear" or "dss".

    Returns:
        K in the real type of C. Gradients reach A, B, C and dt.

    Raises:
        ValueError: a shape or device disagrees, length is below 1, the method is unknown; on a CPU also a dt
            that is not positive, and A = 0 with "dss", which has a pole there.
        TypeError: a type is not the one asked for; the messages name the argument.

    Numbers: all that is made of A, B and dt is float64 or complex128, powers included. z = 0 is exact, zoh at A = 0
    is exact, and so are their gradients. For K in float32, tables of powers are rounded to float32 once, which
    leaves an error of 1e-7 to 4e-7 of the largest |K|, at any length and any phase.
    Cost: 4 c h m l flops forward and 8 backward (half of it for real numbers), as products of matrices. Nothing of
    size (h, m, l) is stored.

    Example:
        >>> A, B, C = torch.tensor([[-1.0]]), torch.ones(1, 1), torch.ones(1, 1, 1)
        >>> K = diagonal_kernel(A, B, C, torch.tensor([1.0]), 3)
        >>> [round(k, 4) for k in K.flatten().tolist()]
        [0.6321, 0.2325, 0.0855]
    """
    length = _check(A, B, C, dt, length, method)
    return _diagonal_kernel(A, B, C, dt, length, method)


def _check(A: Tensor, B: Tensor, C: Tensor, dt: Tensor, length: int, method: str) -> int:
    expect_tensors(NAME, A=A, B=B, C=C, dt=dt)
    sizes = sizes_of(NAME, "A", A, "h m")
    kind = COMPLEX if A.is_complex() else REAL
    sizes["c"] = sizes_of(NAME, "C", C, "c h m")["c"]
    expect(NAME, "A", A, "h m", sizes, A, kind)
    expect(NAME, "B", B, "h m", sizes, A, kind)
    expect(NAME, "C", C, "c h m", sizes, A, kind)
    expect(NAME, "dt", dt, "h m" if dt.ndim == 2 else "h", sizes, A, REAL)
    length = expect_length(NAME, length)
    if method not in coefficients.METHODS:
        allowed = ", ".join(coefficients.METHODS)
        raise ValueError(f"{NAME}: method is {method!r}, expected one of {allowed}")
    refuse_forward_mode(NAME, A, B, C, dt)
    return length


def _kernel(A: Tensor, B: Tensor, C: Tensor, dt: Tensor, length: int, method: str) -> Tensor:
    return coefficients.kernel(portable.forward, A, B, C, dt, length, method)


def _gradients(
    A: Tensor, B: Tensor, C: Tensor, dt: Tensor, length: int, method: str, dK: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return coefficients.gradients(portable.moments, A, B, C, dt, length, method, dK)


_diagonal_kernel = torch.library.custom_op("adder::diagonal_kernel", _kernel, mutates_args=())
_diagonal_kernel_backward = torch.library.custom_op(
    "adder::diagonal_kernel_backward", _gradients, mutates_args=()
)


@_diagonal_kernel.register_fake
def _(A: Tensor, B: Tensor, C: Tensor, dt: Tensor, length: int, method: str) -> Tensor:
    return C.new_empty((*C.shape[:2], length), dtype=C.dtype.to_real())


@_diagonal_kernel_backward.register_fake
def _(
    A: Tensor, B: Tensor, C: Tensor, dt: Tensor, length: int, method: str, dK: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    A, B, C, dt = (each.new_empty(each.shape) for each in (A, B, C, dt))
    return A, B, C, dt


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ctx.length, ctx.method = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dK):  # type: ignore[no-untyped-def]
    A, B, C, dt = ctx.saved_tensors
    return *_diagonal_kernel_backward(A, B, C, dt, ctx.length, ctx.method, dK), None, None


_diagonal_kernel.register_autograd(_backward, setup_context=_setup_context)

if (_native := native.module()) is not None:
    _forward, _moments = partial(cpu.forward, _native), partial(cpu.moments, _native)

    @_diagonal_kernel.register_kernel("cpu")
    def _(A, B, C, dt, length, method):  # type: ignore[no-untyped-def]
        return coefficients.kernel(_forward, A, B, C, dt, length, method)

    @_diagonal_kernel_backward.register_kernel("cpu")
    def _(A, B, C, dt, length, method, dK):  # type: ignore[no-untyped-def]
        return coefficients.gradients(_moments, A, B, C, dt, length, method, dK)


if find_spec("triton") is not None:  # it is imported on the first call on a CUDA device

    @_diagonal_kernel.register_kernel("cuda")
    def _(A, B, C, dt, length, method):  # type: ignore[no-untyped-def]
        from adder.ops.diagonal_kernel import gpu

        with torch.cuda.device(A.device):  # Triton launches where the current device is
            return coefficients.kernel(gpu.forward, A, B, C, dt, length, method)

    @_diagonal_kernel_backward.register_kernel("cuda")
    def _(A, B, C, dt, length, method, dK):  # type: ignore[no-untyped-def]
        from adder.ops.diagonal_kernel import gpu

        with torch.cuda.device(A.device):
            return coefficients.gradients(gpu.moments, A, B, C, dt, length, method, dK)
