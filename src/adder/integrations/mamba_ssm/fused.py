"""mamba_ssm's functions that run a whole mixer or a norm: one kernel there, our operators in a row here."""

import torch
from torch import Tensor
from torch.nn import functional as F

from adder.errors import UsageError
from adder.integrations.functions import (
    causal_conv1d_fn,
    mamba_chunk_scan_combined,
    selective_scan_fn,
)
from adder.integrations.layouts import cast, expect_shape
from adder.ops import gated_norm, linear, rms_norm
from adder.ops.checks import sizes_of
from adder.ops.dtypes import arithmetic


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Mamba from behind its input projection to behind its output projection.

    Args:
        xz: (b 2d l). conv1d_weight: (d 1 k).
        x_proj_weight: (r + 2n, d); delta_proj_weight: (d r); out_proj_weight: (o d).
        B, C: constant (d n), or None: chosen from the input, with B_proj_bias, C_proj_bias (n) added.
        b_rms_weight, c_rms_weight, dt_rms_weight: (n), (n), (d): B, C and the projected step size are normalised.
        checkpoint_lvl: not used: the backward pass always recomputes states.
        The rest is as in `selective_scan_fn`.

    Returns:
        (b l o).
    """
    del checkpoint_lvl
    sizes = sizes_of("mamba_inner_fn", "xz", xz, "b 2d l") | {"1": 1}
    sizes |= {"d": A.shape[0], "k": conv1d_weight.shape[-1], "n": A.shape[1]}
    expect_shape("mamba_inner_fn", "xz", xz, "b 2d l", sizes | {"2d": 2 * sizes["d"]})
    expect_shape("mamba_inner_fn", "conv1d_weight", conv1d_weight, "d 1 k", sizes)
    x, z = xz.chunk(2, dim=1)
    x = causal_conv1d_fn(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu")  # type: ignore[assignment]
    rank, numbers = delta_proj_weight.shape[1], sizes["n"] * (2 if A.is_complex() else 1)
    projected = linear(x.transpose(1, 2), x_proj_weight)
    delta = linear(projected[..., :rank], delta_proj_weight)
    delta = _normalised(delta, dt_rms_weight, b_c_dt_rms_eps)
    if B is None:
        B = projected[..., rank : rank + numbers]
        B = _chosen(B, B_proj_bias, b_rms_weight, b_c_dt_rms_eps, A.is_complex())
    if C is None:
        C = projected[..., -numbers:]
        C = _chosen(C, C_proj_bias, c_rms_weight, b_c_dt_rms_eps, A.is_complex())
    y = selective_scan_fn(
        x, delta.transpose(1, 2), A, B, C, D, z, delta_bias, delta_softplus=delta_softplus
    )
    assert isinstance(y, Tensor)
    return linear(y.transpose(1, 2), out_proj_weight, cast(out_proj_weight.dtype, out_proj_bias))


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba-2 from behind its input projection to behind its output projection.

    Args:
        zxbcdt: (b l 2d + 2gn + h) with d = h p: the gate, x, B, C and dt side by side. Anything in front of them is a
            gated linear unit of its own, whose gate comes first.
        conv1d_weight: (d + 2gn, k).
        D: (h p), or (h), and then headdim is p.
        rmsnorm_weight: (d), of the gated norm; None means y * silu(z) alone.
        outproj_weight: (o d); None means no projection.
        The rest is as in `mamba_chunk_scan_combined`.

    Returns:
        (b l o), and with return_final_states the state after the last step (b h p n).
    """
    name = "mamba_split_conv1d_scan_combined"
    sizes = sizes_of(name, "zxbcdt", zxbcdt, "b l c")
    heads = sizes_of(name, "A", A, "h")["h"]
    if D.ndim == 1 and headdim is None:
        raise UsageError(f"{name}: headdim is needed beside a D of one number for each head")
    p = int(headdim if headdim is not None else D.shape[1])
    mixed, d = conv1d_weight.shape[0], heads * p
    unit = sizes["c"] - d - mixed - heads
    if (mixed - d) % (2 * ngroups) or mixed <= d or unit < 0 or unit % 2:
        raise UsageError(
            f"{name}: zxbcdt has {sizes['c']} channels and conv1d_weight {mixed}, which do not fit {heads} heads of "
            f"{p} channels and {ngroups} groups"
        )
    gate_of_unit, inner_of_unit, z, xbc, dt = torch.split(
        zxbcdt, [unit // 2, unit // 2, d, mixed, heads], dim=-1
    )
    convolved = causal_conv1d_fn(
        xbc.transpose(1, 2), conv1d_weight, conv1d_bias, seq_idx, activation=activation
    )
    assert isinstance(convolved, Tensor)
    shared = (mixed - d) // 2
    x, B, C = torch.split(convolved.transpose(1, 2), [d, shared, shared], dim=-1)
    y, last = mamba_chunk_scan_combined(
        torch.unflatten(x, -1, (heads, p)),
        dt,
        A,
        torch.unflatten(B, -1, (ngroups, -1)),
        torch.unflatten(C, -1, (ngroups, -1)),
        chunk_size,
        D,
        torch.unflatten(z, -1, (heads, p)) if rmsnorm_weight is None else None,
        dt_bias,
        initial_states,
        seq_idx,
        dt_softplus=True,
        dt_limit=dt_limit,
        return_final_states=True,
        state_dtype=state_dtype,
    )
    y = y.flatten(2)
    if rmsnorm_weight is not None:
        y = rmsnorm_fn(
            y, rmsnorm_weight, None, z, rmsnorm_eps, d // ngroups, norm_before_gate=norm_before_gate
        )
    if unit:
        y = torch.cat([F.silu(gate_of_unit) * inner_of_unit, y], dim=-1)
    if outproj_weight is not None:
        y = linear(y, outproj_weight, cast(outproj_weight.dtype, outproj_bias))
    return (y, last) if return_final_states else y


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """`adder.ops.gated_norm`, as mamba_ssm.ops.triton.layernorm_gated calls it.

    Args:
        x, z: (... d). weight: (d). bias: not served.
        group_size: channels that are normalised together; None means all.

    Returns:
        RMSNorm(x) * weight * silu(z), or with norm_before_gate=False RMSNorm(x * silu(z)) * weight; x's shape and type.
    """
    if bias is not None:
        raise UsageError("rmsnorm_fn: bias is not served")
    weight = weight.to(arithmetic(x.dtype))
    if z is not None:
        return gated_norm(
            x,
            z.to(x.dtype),
            weight,
            eps=eps,
            group_size=group_size,
            norm_before_gate=norm_before_gate,
        )
    if group_size is None:
        return rms_norm(x, weight, eps=eps)
    groups = torch.unflatten(x, -1, (-1, group_size))
    y = rms_norm(groups, weight.new_ones(group_size), eps=eps).flatten(-2)
    return (y * weight).to(x.dtype)


def _chosen(
    x: Tensor, bias: Tensor | None, norm: Tensor | None, eps: float, is_complex: bool
) -> Tensor:
    """B or C (b l n) as the scan takes it: (b n l), or (b n 2l) where each number is a pair"""
    x = x if bias is None else x + bias.to(x.dtype)
    x = _normalised(x, norm, eps)
    if is_complex:
        return torch.unflatten(x, -1, (-1, 2)).transpose(1, 2).flatten(2)
    return x.transpose(1, 2)


def _normalised(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return x if weight is None else rms_norm(x, weight.to(arithmetic(x.dtype)), eps=eps)
