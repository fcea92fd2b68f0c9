"""The public linear scan, and the PyTorch operator under it."""

import torch
from jaxtyping import Inexact, Int32
from torch import Tensor

from adder.ops import native
from adder.ops.checks import expect, expect_packing, refuse_forward_mode
from adder.ops.linear_scan import cpu, portable


def linear_scan(
    a: Inexact[Tensor, "b l *channels"],
    x: Inexact[Tensor, "b l *channels"],
    state: Inexact[Tensor, "b *channels"] | None = None,
    *,
    reverse: bool = False,
    seq_idx: Int32[Tensor, "b l"] | None = None,
) -> tuple[Inexact[Tensor, "b l *channels"], Inexact[Tensor, "b *channels"]]:
    r"""Run a linear recurrence whose decay changes at every step, each channel by itself.

        h[t] = a[t] h[t-1] + x[t]

    This is the recurrence inside every diagonal state space model. It is associative, so it can be
    added up in parallel (Blelloch 1990; Martin & Cundy 2018, arXiv:1709.04057; S5, arXiv:2208.04933).

    Axes: `b` batch, `l` length, then any number of axes of channels.

    Args:
        a: the decay, of any size or sign; zero forgets exactly.
        x: the input, of a's shape and type: real, or complex64 / complex128.
        state: h[-1], or h[l] with `reverse`; in x's type or in the type of arithmetic. None means zero.
        reverse: run from the end, h[t] = a[t] h[t+1] + x[t].
        seq_idx: the number of the packed sequence that each step belongs to, non-decreasing along the
            length. h restarts at zero where it changes; the state belongs to the sequence it meets first.

    Returns:
        h, and its last value (h[0] with `reverse`) in the type of arithmetic. Pass the second as `state`
        to continue: one call on a whole sequence and two on its parts agree. Both carry gradients.

    Raises:
        ValueError: a shape or device disagrees, an axis is empty, or seq_idx goes backwards.
        TypeError: a type disagrees; the messages name the argument.

    Numbers: float32 for float32, bfloat16 and float16, otherwise x's own type.
    Cost: b l c multiply-adds, and 3 tensors of traffic (5 in the backward pass): memory decides.

    Example:
        >>> a, x = torch.full((1, 3, 1), 0.5), torch.ones(1, 3, 1)
        >>> h, state = linear_scan(a, x)
        >>> h.flatten().tolist(), state.tolist()
        ([1.0, 1.5, 1.75], [[1.75]])
    """
    _check(a, x, state, seq_idx)
    b, length = x.shape[:2]
    if state is not None:
        state = state.to(_working(x.dtype)).reshape(b, -1)
    h, last = _linear_scan(
        a.reshape(b, length, -1), x.reshape(b, length, -1), state, reverse, seq_idx
    )
    return h.view(x.shape), last.view(b, *x.shape[2:])


def _working(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _check(a: Tensor, x: Tensor, state: Tensor | None, seq_idx: Tensor | None) -> None:
    name = "linear_scan"
    if not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"{name}: x is {x.dtype}, expected a floating point or complex type")
    shape = tuple(x.shape)
    if x.ndim < 2:
        raise ValueError(f"{name}: x has shape {shape}, expected at least 2 axes (b, l, ...)")
    if x.numel() == 0:
        raise ValueError(f"{name}: x has shape {shape}: axis {shape.index(0)} is empty")
    axes = ["b", "l", *(f"c{i}" for i in range(1, x.ndim - 1))]
    sizes = dict(zip(axes, shape, strict=True))
    expect(name, "a", a, " ".join(axes), sizes, x, (x.dtype,))
    outer = " ".join(["b", *axes[2:]])
    expect(name, "state", state, outer, sizes, x, (x.dtype, _working(x.dtype)))
    expect_packing(name, seq_idx, sizes, x)
    refuse_forward_mode(name, a, x, state)


def _scan(
    a: Tensor, x: Tensor, state: Tensor | None, reverse: bool, seq_idx: Tensor | None
) -> tuple[Tensor, Tensor]:
    h, last = portable.forward(a, x, state, reverse, seq_idx)
    return _fresh(h, x.dtype), last


def _adjoint(
    a: Tensor,
    h: Tensor,
    state: Tensor | None,
    reverse: bool,
    seq_idx: Tensor | None,
    dh: Tensor,
    dlast: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    da, dx, dstate = portable.backward(a, h, state, reverse, seq_idx, dh, dlast)
    return _fresh(da, a.dtype), _fresh(dx, a.dtype), dstate.contiguous()


def _fresh(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor of this type, as the fake implementations promise."""
    return x.to(dtype).contiguous()


_linear_scan = torch.library.custom_op("adder::linear_scan", _scan, mutates_args=())
_linear_scan_backward = torch.library.custom_op(
    "adder::linear_scan_backward", _adjoint, mutates_args=()
)


@_linear_scan.register_fake
def _(
    a: Tensor, x: Tensor, state: Tensor | None, reverse: bool, seq_idx: Tensor | None
) -> tuple[Tensor, Tensor]:
    b, _, c = x.shape
    return x.new_empty(x.shape), x.new_empty(b, c, dtype=_working(x.dtype))


@_linear_scan_backward.register_fake
def _(
    a: Tensor,
    h: Tensor,
    state: Tensor | None,
    reverse: bool,
    seq_idx: Tensor | None,
    dh: Tensor,
    dlast: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), a.new_empty(a.shape), dlast.new_empty(dlast.shape)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    a, _, state, reverse, seq_idx = inputs
    ctx.save_for_backward(a, output[0], state, seq_idx)
    ctx.reverse = reverse


def _backward(ctx, dh, dlast):  # type: ignore[no-untyped-def]
    a, h, state, seq_idx = ctx.saved_tensors
    da, dx, dstate = _linear_scan_backward(a, h, state, ctx.reverse, seq_idx, dh, dlast)
    return da, dx, None if state is None else dstate, None, None


_linear_scan.register_autograd(_backward, setup_context=_setup_context)


if (_native := native.module()) is not None:

    @_linear_scan.register_kernel("cpu")
    def _(a, x, state, reverse, seq_idx):  # type: ignore[no-untyped-def]
        if cpu.serves(x.dtype):
            return cpu.forward(_native, a, x, state, reverse, seq_idx)
        return _scan(a, x, state, reverse, seq_idx)

    @_linear_scan_backward.register_kernel("cpu")
    def _(a, h, state, reverse, seq_idx, dh, dlast):  # type: ignore[no-untyped-def]
        if cpu.serves(a.dtype):
            return cpu.backward(_native, a, h, state, reverse, seq_idx, dh, dlast)
        return _adjoint(a, h, state, reverse, seq_idx, dh, dlast)
