"""mamba_ssm's fused functions against our references in a row, and what all of its functions refuse."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from einops import rearrange
from tolerance import assert_as_good_as_reference
from torch import Tensor
from torch.nn import functional as F

from adder.errors import UsageError
from adder.integrations.mamba_ssm import (
    causal_conv1d_fn,
    causal_conv1d_update,
    mamba_chunk_scan_combined,
    mamba_inner_fn,
    mamba_split_conv1d_scan_combined,
    rmsnorm_fn,
    selective_scan_fn,
    selective_state_update,
)
from adder.ops.gated_norm.reference import gated_norm_reference, rms_norm_reference
from adder.ops.selective_scan.reference import selective_scan_reference
from adder.ops.short_convolution.reference import short_convolution_reference
from adder.ops.state_space_dual.reference import state_space_dual_reference

DTYPES = [torch.float64, torch.float32]
b, l, d, n, g, k, h, p, r, o = 2, 5, 6, 2, 2, 3, 4, 3, 2, 7
width = h * p + 2 * g * n


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape) + 7 * len(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def inner_reference(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor,
    A: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
) -> Tensor:
    def chosen(x: Tensor, bias: Tensor | None, weight: Tensor | None) -> Tensor:
        x = x if bias is None else x + bias
        x = x if weight is None else rms_norm_reference(x, weight, eps=1e-6)
        if not A.is_complex():
            return x
        return torch.view_as_complex(rearrange(x, "b l (n two) -> b l n two", two=2).contiguous())

    x, z = xz.mT.chunk(2, dim=-1)
    x, _ = short_convolution_reference(x, conv1d_weight[:, 0], conv1d_bias, activation="silu")
    both = x @ x_proj_weight.mT
    delta = both[..., :r] @ delta_proj_weight.mT
    if dt_rms_weight is not None:
        delta = rms_norm_reference(delta, dt_rms_weight, eps=1e-6)
    held = n * (2 if A.is_complex() else 1)
    B = chosen(both[..., r : r + held], B_proj_bias, b_rms_weight) if B is None else B
    C = chosen(both[..., -held:], C_proj_bias, c_rms_weight) if C is None else C
    y, _ = selective_scan_reference(
        x, delta, A, B, C, D, z=z, delta_bias=delta_bias, delta_softplus=True
    )
    return y @ out_proj_weight.mT + out_proj_bias


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["plain", "complex", "constant B", "biases", "norms"])
def test_mamba_inner_fn(kind: str, dtype: torch.dtype) -> None:
    new = partial(normal, dtype=dtype)
    held = 2 * n if kind == "complex" else n
    inputs = {
        "xz": new(b, 2 * d, l),
        "conv1d_weight": new(d, 1, k),
        "conv1d_bias": new(d),
        "x_proj_weight": new(r + (1 if kind == "constant B" else 2) * held, d),
        "delta_proj_weight": new(d, r),
        "out_proj_weight": new(o, d),
        "out_proj_bias": new(o),
        "A": -new(d, n).exp(),
        "D": new(d, seed=1),
        "delta_bias": new(d, seed=2),
    }
    if kind == "complex":
        inputs["A"] = torch.complex(inputs["A"], new(d, n, seed=3))
    if kind == "constant B":
        inputs["B"] = new(d, n, seed=4)
    if kind == "biases":
        inputs |= {"B_proj_bias": new(n), "C_proj_bias": new(n, seed=1)}
    if kind == "norms":
        inputs |= {"b_rms_weight": new(n), "c_rms_weight": new(n, seed=1), "dt_rms_weight": new(d)}
    assert_as_good_as_reference(mamba_inner_fn, inner_reference, inputs)


def split_reference(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    initial_states: Tensor,
    outproj_weight: Tensor,
    outproj_bias: Tensor,
    rmsnorm_weight: Tensor | None,
    *,
    norm_before_gate: bool,
    unit: int,
) -> tuple[Tensor, Tensor]:
    gate, inner, z, mixed, dt = zxbcdt.split([unit, unit, h * p, width, h], dim=-1)
    mixed, _ = short_convolution_reference(mixed, conv1d_weight, conv1d_bias, activation="silu")
    x, B, C = mixed.split([h * p, g * n, g * n], dim=-1)
    y, last = state_space_dual_reference(
        rearrange(x, "b l (h p) -> b l h p", p=p),
        dt,
        A,
        rearrange(B, "b l (g n) -> b l g n", g=g),
        rearrange(C, "b l (g n) -> b l g n", g=g),
        D,
        dt_bias=dt_bias,
        dt_softplus=True,
        dt_limit=(0.2, 2.0),
        state=initial_states,
    )
    y = y.flatten(2)
    if rmsnorm_weight is None:
        y = y * F.silu(z)
    else:
        y = gated_norm_reference(
            y,
            z,
            rmsnorm_weight,
            eps=1e-6,
            group_size=h * p // g,
            norm_before_gate=norm_before_gate,
        )
    y = torch.cat([F.silu(gate) * inner, y], dim=-1)
    return y @ outproj_weight.mT + outproj_bias, last


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("norm", "before", "unit"), [(True, True, 0), (True, False, 3), (False, False, 2)]
)
def test_mamba_split_conv1d_scan_combined(
    norm: bool, before: bool, unit: int, dtype: torch.dtype
) -> None:
    new = partial(normal, dtype=dtype)
    inputs = {
        "zxbcdt": new(b, l, 2 * unit + h * p + width + h),
        "conv1d_weight": new(width, k),
        "conv1d_bias": new(width),
        "dt_bias": new(h),
        "A": -new(h, seed=1).exp(),
        "D": new(h, p) if unit else new(h),
        "initial_states": new(b, h, p, n),
        "outproj_weight": new(o, unit + h * p),
        "outproj_bias": new(o),
        "rmsnorm_weight": new(h * p) if norm else None,
    }
    assert_as_good_as_reference(
        partial(
            mamba_split_conv1d_scan_combined,
            chunk_size=4,
            headdim=None if unit else p,
            ngroups=g,
            dt_limit=(0.2, 2.0),
            return_final_states=True,
            norm_before_gate=before,
        ),
        partial(split_reference, norm_before_gate=before, unit=unit),
        inputs,
    )


@pytest.mark.parametrize("group_size", [None, 3])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
def test_rmsnorm_fn_without_a_gate(dtype: torch.dtype, group_size: int | None) -> None:
    def reference(x: Tensor, weight: Tensor) -> Tensor:
        groups = x.to(torch.promote_types(x.dtype, torch.float32))
        groups = groups.unflatten(-1, (-1, group_size or d))
        y = groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + 1e-6)
        return (y.flatten(-2) * weight).to(x.dtype)

    ours = partial(rmsnorm_fn, bias=None, group_size=group_size)
    inputs = {"x": normal(b, l, d, dtype=dtype), "weight": normal(d, dtype=dtype)}
    assert_as_good_as_reference(ours, reference, inputs)


one = torch.ones
CALLS: list[tuple[str, Callable[[], Any]]] = [
    (
        r"selective_scan_fn: delta has shape \(1, 3, 4\), expected \(b, d, l\) = \(1, 2, 4\)",
        lambda: selective_scan_fn(one(1, 2, 4), one(1, 3, 4), one(2, 3), one(2, 3), one(2, 3)),
    ),
    (
        r"selective_scan_fn: B has shape \(1, 3, 5\), expected \(b, n, l\) = \(1, 3, 4\)",
        lambda: selective_scan_fn(one(1, 2, 4), one(1, 2, 4), one(2, 3), one(1, 3, 5), one(2, 3)),
    ),
    (
        "selective_scan_fn: C has shape .* expected length 8: beside a complex A",
        lambda: selective_scan_fn(
            one(1, 2, 4), one(1, 2, 4), one(2, 3) * 1j, one(2, 3), one(1, 3, 4)
        ),
    ),
    (
        "selective_state_update: B has 2 groups, which do not divide 3 heads",
        lambda: selective_state_update(
            one(1, 3, 2, 4), one(1, 3, 2), one(1, 3, 2), one(3, 2, 4), one(1, 2, 4), one(1, 2, 4)
        ),
    ),
    (
        r"causal_conv1d_fn: initial_states has shape \(1, 2, 4\), expected",
        lambda: causal_conv1d_fn(one(1, 2, 5), one(2, 4), initial_states=one(1, 2, 4)),
    ),
    (
        "causal_conv1d_fn: activation is 'gelu', expected None",
        lambda: causal_conv1d_fn(one(1, 2, 5), one(2, 4), activation="gelu"),
    ),
    (
        "causal_conv1d_update: cache_seqlens is not served",
        lambda: causal_conv1d_update(one(1, 2), one(1, 2, 4), one(2, 4), cache_seqlens=one(1)),
    ),
    (
        r"causal_conv1d_update: conv_state has shape \(1, 2, 2\), expected .* \(1, 2, 3\)",
        lambda: causal_conv1d_update(one(1, 2), one(1, 2, 2), one(2, 4)),
    ),
    (
        "mamba_chunk_scan_combined: cu_seqlens and return_varlen_states are not served",
        lambda: mamba_chunk_scan_combined(*[one(1)] * 5, 4, return_varlen_states=True),
    ),
    (
        "mamba_chunk_scan_combined: state_dtype is torch.bfloat16",
        lambda: mamba_chunk_scan_combined(*[one(1)] * 5, 4, state_dtype=torch.bfloat16),
    ),
    (
        "mamba_split_conv1d_scan_combined: headdim is needed",
        lambda: mamba_split_conv1d_scan_combined(
            one(1, 2, 12), one(6, 2), None, one(2), one(2), one(2), 4
        ),
    ),
    (
        "zxbcdt has 11 channels and conv1d_weight 6, which do not fit 2 heads of 2 channels and 1",
        lambda: mamba_split_conv1d_scan_combined(
            one(1, 2, 11), one(6, 2), None, one(2), one(2), one(2), 4, headdim=2
        ),
    ),
    ("rmsnorm_fn: bias is not served", lambda: rmsnorm_fn(one(2, 3), one(3), one(3))),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("message", "call"), CALLS, ids=[message[:40] for message, _ in CALLS])
def test_what_is_not_served_is_named(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(UsageError, match=message):
        call()
