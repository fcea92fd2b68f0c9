"""The public S4 kernel, and the PyTorch operator under it."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from adder.ops import native
from adder.ops.checks import (
    expect,
    expect_length,
    expect_positive,
    expect_tensors,
    refuse_forward_mode,
    sizes_of,
)
from adder.ops.dplr_kernel import cpu, portable
from adder.ops.dplr_kernel.discrete import Discrete, bilinear, bilinear_adjoint

NAME = "dplr_kernel"


def dplr_kernel(
    Lambda: Complex[Tensor, "h m"],
    P: Complex[Tensor, "r h m"],
    B: Complex[Tensor, "h m"],
    C: Complex[Tensor, "c h m"],
    dt: Float[Tensor, " h"],
    length: int,
) -> Float[Tensor, "c h l"]:
    r"""Return the convolution kernel of state space models whose A is diagonal plus low rank: S4's.

        A = Lambda - sum_r P_r P_r*          with the conjugate half of every complex number beside it
        Abar = (I - dt/2 A)^-1 (I + dt/2 A)  Bbar = (I - dt/2 A)^-1 dt B        the bilinear transform
        K[l] = C Abar^l Bbar                 l = 0 .. length - 1

    S4 (Gu, Goel & Re 2021, arXiv:2111.00396), section 3. C is the C of the recurrence itself, not the paper's
    C (I - Abar^L): the same parameters give the kernel of any length.

    Axes: `h` systems, `m` eigenvalues, one of each conjugate pair (state size n = 2 m), `r` rank, `c` outputs of
    each system.

    Args:
        Lambda: eigenvalues of the normal part, real parts at most 0 for a stable model.
        P: the low-rank part; r = 0 makes A diagonal.
        B, C: input and output projections: y = 2 Re(C h).
        dt: the step size, positive.
        length: how many steps of the kernel, at least 1.

    Returns:
        K in the real type of C. It carries gradients to every argument.

    Raises:
        ValueError: a shape or device disagrees, an axis is empty, the length is below 1; on a CPU also a dt that is
            not positive.
        TypeError: a type disagrees; the messages name the argument.

    Numbers: everything of size (h, n, n) is float64; float32 kernels round at the end, and their product sums n terms.
    Cost: about n l multiply-adds for each output of a system, and n^3 log2(sqrt(l)) to build the tables.

    Example:
        >>> Lambda, B = torch.full((1, 1), -0.5 + 3.0j), torch.ones(1, 1, dtype=torch.complex64)
        >>> dplr_kernel(Lambda, torch.zeros(1, 1, 1) + 0j, B, B.unsqueeze(0), torch.full((1,), 0.1), 4).shape
        torch.Size([1, 1, 4])
    """
    expect_tensors(NAME, Lambda=Lambda, P=P, B=B, C=C, dt=dt)
    sizes = sizes_of(NAME, "Lambda", Lambda, "h m")
    if not Lambda.is_complex():
        raise TypeError(
            f"{NAME}: Lambda is {Lambda.dtype}, expected complex64 or complex128, one of each conjugate pair"
        )
    sizes["c"] = sizes_of(NAME, "C", C, "c h m")["c"]
    if P.ndim != 3:
        raise ValueError(f"{NAME}: P has shape {tuple(P.shape)}, expected 3 axes (r, h, m)")
    sizes["r"] = P.shape[0]
    for name, each, axes in (("P", P, "r h m"), ("B", B, "h m"), ("C", C, "c h m")):
        expect(NAME, name, each, axes, sizes, Lambda, (torch.complex64, torch.complex128))
    expect(NAME, "dt", dt, "h", sizes, Lambda, (torch.float32, torch.float64))
    length = expect_length(NAME, length)
    refuse_forward_mode(NAME, Lambda, P, B, C, dt)
    arguments = (each.resolve_conj().resolve_neg() for each in (Lambda, P, B, C))
    return _dplr_kernel(*arguments, dt, length)


def _discrete(Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor) -> Discrete:
    expect_positive(NAME, "dt", dt)
    return bilinear(Lambda, P, B, C, dt)


def _kernel(Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, length: int) -> Tensor:
    system = _discrete(Lambda, P, B, C, dt)
    K = portable.forward(system.Abar, system.Bbar, system.c, length, C.dtype.to_real())
    return K.contiguous()


def _adjoint(
    Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, dK: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    system = bilinear(Lambda, P, B, C, dt)
    found = portable.backward(system.Abar, system.Bbar, system.c, dK)
    return _gradients(Lambda, P, B, C, dt, system.G, *found)


def _gradients(
    Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, G: Tensor, *found: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradients = bilinear_adjoint(Lambda, P, B, dt, G, *found)
    dLambda, dP, dB, dC, ddt = (
        grad.to(each.dtype).contiguous()
        for grad, each in zip(gradients, (Lambda, P, B, C, dt), strict=True)
    )
    return dLambda, dP, dB, dC, ddt


_dplr_kernel = torch.library.custom_op("adder::dplr_kernel", _kernel, mutates_args=())
_dplr_kernel_backward = torch.library.custom_op(
    "adder::dplr_kernel_backward", _adjoint, mutates_args=()
)


@_dplr_kernel.register_fake
def _(Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, length: int) -> Tensor:
    return C.new_empty(C.shape[0], C.shape[1], length, dtype=C.dtype.to_real())


@_dplr_kernel_backward.register_fake
def _(
    Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, dK: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dLambda, dP, dB, dC, ddt = (each.new_empty(each.shape) for each in (Lambda, P, B, C, dt))
    return dLambda, dP, dB, dC, ddt


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:5])


def _backward(ctx, dK):  # type: ignore[no-untyped-def]
    return *_dplr_kernel_backward(*ctx.saved_tensors, dK), None


_dplr_kernel.register_autograd(_backward, setup_context=_setup_context)


if (_native := native.module()) is not None:

    @_dplr_kernel.register_kernel("cpu")
    def _(Lambda, P, B, C, dt, length):  # type: ignore[no-untyped-def]
        system = _discrete(Lambda, P, B, C, dt)
        return cpu.forward(_native, system.Abar, system.Bbar, system.c, length, C.dtype.to_real())

    @_dplr_kernel_backward.register_kernel("cpu")
    def _(Lambda, P, B, C, dt, dK):  # type: ignore[no-untyped-def]
        system = bilinear(Lambda, P, B, C, dt)
        found = cpu.backward(_native, system.Abar, system.Bbar, system.c, dK)
        return _gradients(Lambda, P, B, C, dt, system.G, *found)
