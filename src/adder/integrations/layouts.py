"""From the layouts and types of mamba_ssm and causal_conv1d to ours."""

from typing import Literal

import torch
from torch import Tensor

from adder.errors import UsageError
from adder.ops.checks import expect_tensors, sizes_of
from adder.ops.dtypes import arithmetic

ACTIVATIONS = (None, "silu", "swish")


def channels_last(x: Tensor) -> Tensor:
    """(b d l) -> (b l d). PyTorch copies a matrix to its transpose three times as fast as a batch of one matrix."""
    if len(x) == 1 and x[0].is_contiguous():
        return x[0].t().contiguous().unsqueeze(0)
    return x.transpose(1, 2)


def over_time(
    name: str, which: str, x: Tensor, sizes: dict[str, int], *, is_complex: bool
) -> Tensor:
    """(b n l), (b g n l) or (d n) -> (b l n), (b l g n) or (d n); complex beside a complex A"""
    expect_tensors(name, **{which: x})
    if x.ndim == 2:
        return x
    if is_complex:
        if x.shape[-1] != 2 * sizes["l"]:
            raise UsageError(
                f"{name}: {which} has shape {tuple(x.shape)}, expected length {2 * sizes['l']}: "
                "beside a complex A a real and an imaginary part for each step"
            )
        x = torch.view_as_complex(
            torch.unflatten(x.to(arithmetic(x.dtype)), -1, (-1, 2)).contiguous()
        )
    axes = "b n l" if x.ndim == 3 else "b g n l"
    found = sizes_of(name, which, x, axes)
    expect_shape(name, which, x, axes, sizes | {"g": found.get("g", 1)})
    return x.transpose(1, 2) if x.ndim == 3 else x.permute(0, 3, 1, 2)


def one_step_per_head(dt: Tensor, A: Tensor, dt_bias: Tensor | None) -> bool:
    """Whether what Mamba-2 has once for a head was expanded over its channels: (b 1 h p), (h p n), (h p)."""
    parts = [(dt, 1), (A, 2), *([] if dt_bias is None else [(dt_bias, 1)])]
    return all(
        each.stride(-axis) == 0 or each.shape[-axis] == 1
        for each, count in parts
        for axis in range(1, count + 1)
    )


def activation_of(name: str, activation: str | None) -> Literal["silu"] | None:
    """Return the activation by our name: silu and swish are one."""
    if activation not in ACTIVATIONS:
        raise UsageError(f'{name}: activation is {activation!r}, expected None, "silu" or "swish"')
    return None if activation is None else "silu"


def expect_shape(name: str, which: str, x: Tensor | None, axes: str, sizes: dict[str, int]) -> None:
    """Refuse a tensor that does not have these axes, in the layout the caller knows; None is welcome."""
    if x is None:
        return
    expect_tensors(name, **{which: x})
    expected = tuple(sizes[axis] for axis in axes.split())
    if tuple(x.shape) != expected:
        raise UsageError(
            f"{name}: {which} has shape {tuple(x.shape)}, expected ({', '.join(axes.split())}) = {expected}"
        )


def widest(*signals: Tensor | None) -> torch.dtype:
    """Return the type that holds all of these tensors."""
    dtypes = [each.dtype for each in signals if each is not None]
    widest = dtypes[0]
    for each in dtypes[1:]:
        widest = torch.promote_types(widest, each)
    return widest


def cast(dtype: torch.dtype, x: Tensor | None) -> Tensor | None:
    """Return x in this type; None stays None."""
    return None if x is None else x.to(dtype)
