"""The functions of mamba_ssm and causal_conv1d, in their own layouts and types, on our operators.

Signals are (batch, dim, length) where theirs are, and of any mix of types: the widest is computed in, and the result
has the first argument's type. Written from their signatures; no code is theirs.
"""

import torch
from torch import Tensor

from adder.errors import UsageError
from adder.integrations.layouts import (
    activation_of,
    cast,
    channels_last,
    expect_shape,
    one_step_per_head,
    over_time,
    widest,
)
from adder.ops import selective_scan, short_convolution, state_space_dual
from adder.ops.checks import expect_tensors, sizes_of
from adder.ops.dtypes import arithmetic, number


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    state: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`adder.ops.selective_scan`, as mamba_ssm.ops.selective_scan_interface calls it.

    Args:
        u, delta, z: (b d l).
        A: (d n), real or complex.
        B, C: (b n l), by groups of channels (b g n l), or constant (d n). With complex A, those that change over time
            are real and of length 2 l, a real and an imaginary part for each step.
        D, delta_bias: (d).
        return_last_state: return the state after the last step (b d n) too. It carries gradients, unlike the original.
        state: the state before the first step (b d n), which the original cannot be given.

    Returns:
        y (b d l) in u's type, or y and the last state.

    Raises:
        UsageError, ValueError, TypeError: an argument is not as above; the message names it.
    """
    name = "selective_scan_fn"
    sizes = sizes_of(name, "u", u, "b d l")
    expect_shape(name, "delta", delta, "b d l", sizes)
    expect_shape(name, "z", z, "b d l", sizes)
    sizes["n"] = sizes_of(name, "A", A, "d n")["n"]
    B, C = (
        over_time(name, which, each, sizes, is_complex=A.is_complex())
        for which, each in (("B", B), ("C", C))
    )
    dtype = widest(
        u, delta, z, *(each for each in (B, C) if each.ndim > 2 and not each.is_complex())
    )
    real, complex_ = arithmetic(dtype), number(dtype, is_complex=True)
    A, B, C = (
        each.to(complex_ if each.is_complex() else real if each.ndim == 2 else dtype)
        for each in (A, B, C)
    )
    y, last = selective_scan(
        channels_last(u.to(dtype)),
        channels_last(delta.to(dtype)),
        A,
        B,
        C,
        cast(real, D),
        z=None if z is None else channels_last(z.to(dtype)),
        delta_bias=cast(real, delta_bias),
        delta_softplus=bool(delta_softplus),
        state=None if state is None else state.to(complex_ if A.is_complex() else real),
    )
    y = y.to(u.dtype).transpose(1, 2)
    return (y, last) if return_last_state else y


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """One step of the scan of Mamba or Mamba-2, in place: mamba_ssm.ops.triton.selective_state_update.

    Args:
        state: (b d n), or by heads (b h d n). It is overwritten with the state after the step.
        x, dt, z: (b d) or (b h d). A dt whose last stride is 0, beside such an A and dt_bias, is one step for a head.
        A: (d n) or (h d n).
        B, C: (b n), or by groups of heads (b g n).
        D, dt_bias: (d) or (h d).
        state_batch_indices: (b): the rows of a longer state that belong to the batch.

    Returns:
        y of x's shape and type.

    Raises:
        UsageError, ValueError, TypeError: an argument is not as above; the message names it.

    Gradients flow through y and through the state that is written, as long as the state itself is no leaf of them.
    """
    name = "selective_state_update"
    expect_tensors(name, state=state, x=x, dt=dt, A=A, B=B, C=C)
    axes = "b h d" if state.ndim == 4 else "b d"
    rows = state if state_batch_indices is None else state[state_batch_indices.long()]
    sizes = sizes_of(name, "state", rows, f"{axes} n")
    grouped = "b g n" if B.ndim == 3 else "b n"
    sizes |= {"g": sizes_of(name, "B", B, grouped).get("g", 1)}
    for which, each, expected in (
        ("x", x, axes),
        ("dt", dt, axes),
        ("A", A, f"{axes[2:]} n"),
        ("B", B, grouped),
        ("C", C, grouped),
        ("D", D, axes[2:]),
        ("z", z, axes),
        ("dt_bias", dt_bias, axes[2:]),
    ):
        expect_shape(name, which, each, expected, sizes)
    if sizes.get("h", 1) % sizes["g"]:
        raise UsageError(
            f"{name}: B has {sizes['g']} groups, which do not divide {sizes.get('h', 1)} heads"
        )
    given, dtype = x, widest(x, dt, B, C, z)
    real = arithmetic(dtype)
    before = rows.to(real)
    if torch.is_grad_enabled() and before.data_ptr() == state.data_ptr():
        before = before.clone()  # what backward reads must not be overwritten
    B, C = (each.to(dtype).view(len(each), 1, sizes["g"], sizes["n"]) for each in (B, C))
    x, dt = (each.to(dtype).unsqueeze(1) for each in (x, dt))
    z = None if z is None else z.to(dtype).unsqueeze(1)
    D, dt_bias = cast(real, D), cast(real, dt_bias)
    # state_space_dual has no steps below zero: only a softplus makes sure that there are none.
    if state.ndim == 4 and dt_softplus and one_step_per_head(dt, A, dt_bias):
        y, last = state_space_dual(
            x,
            dt[..., 0],
            A[:, 0, 0].to(real),
            B,
            C,
            D,
            z=z,
            dt_bias=None if dt_bias is None else dt_bias[:, 0],
            dt_softplus=True,
            state=before,
        )
    else:
        y, last = selective_scan(
            x.flatten(2),
            dt.flatten(2),
            A.to(real).flatten(0, -2),
            B,
            C,
            None if D is None else D.flatten(),
            z=None if z is None else z.flatten(2),
            delta_bias=None if dt_bias is None else dt_bias.flatten(),
            delta_softplus=bool(dt_softplus),
            state=before.flatten(1, -2),
        )
    last = last.view(rows.shape)
    if state_batch_indices is None:
        state.copy_(last)
    else:
        state[state_batch_indices.long()] = last.to(state.dtype)
    return y.to(given.dtype).view(given.shape)


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`adder.ops.short_convolution`, as causal_conv1d calls it.

    Args:
        x: (b d l).
        weight, bias: (d k), (d).
        seq_idx: (b l) int32, non-decreasing: packed sequences. Unlike the original it goes together with states.
        initial_states: (b d k-1), the inputs before the first.
        return_final_states: return the last k-1 inputs (b d k-1) too.
        final_states_out: where those are written, if they are returned.
        activation: None, "silu" or "swish", which is the same.

    Returns:
        y (b d l) in x's type, channels side by side in memory, or y and the final states.

    Raises:
        UsageError, ValueError, TypeError: an argument is not as above; the message names it.
    """
    name = "causal_conv1d_fn"
    sizes = sizes_of(name, "x", x, "b d l")
    sizes["k-1"] = sizes_of(name, "weight", weight, "d k")["k"] - 1
    expect_shape(name, "initial_states", initial_states, "b d k-1", sizes)
    y, last = short_convolution(
        channels_last(x),
        weight.to(arithmetic(x.dtype)),
        cast(arithmetic(x.dtype), bias),
        activation=activation_of(name, activation),
        state=None if initial_states is None else initial_states.to(x.dtype).transpose(1, 2),
        seq_idx=seq_idx,
    )
    y, last = y.transpose(1, 2), last.transpose(1, 2)
    if not return_final_states:
        return y
    return y, last if final_states_out is None else final_states_out.copy_(last)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """A few steps of the short convolution, in place: causal_conv1d.causal_conv1d_update.

    Args:
        x: (b d), or several steps (b d l).
        conv_state: (b d s) with s >= k - 1 columns, the last inputs, the newest last. It moves on by the steps.
        weight, bias: (d k), (d).
        activation: None, "silu" or "swish", which is the same.
        cache_seqlens: not served: the state is no ring buffer here.
        conv_state_indices: (b): the rows of a longer state that belong to the batch.

    Returns:
        y of x's shape and type.

    Raises:
        UsageError, ValueError, TypeError: an argument is not as above; the message names it.

    Gradients flow through y and through the state that is written, as long as the state itself is no leaf of them.
    """
    name = "causal_conv1d_update"
    if cache_seqlens is not None:
        raise UsageError(
            f"{name}: cache_seqlens is not served: keep the newest column of conv_state last"
        )
    expect_tensors(name, x=x, conv_state=conv_state)
    steps = x.unsqueeze(-1) if x.ndim == 2 else x
    sizes = sizes_of(name, "x", steps, "b d l")
    rows = conv_state if conv_state_indices is None else conv_state[conv_state_indices.long()]
    k = sizes_of(name, "weight", weight, "d k")["k"]
    held = sizes_of(name, "conv_state", rows, "b d s")["s"] if k > 1 else rows.shape[-1]
    expect_shape(name, "conv_state", rows, "b d s", sizes | {"s": max(held, k - 1)})
    dtype = torch.promote_types(x.dtype, conv_state.dtype)
    known = torch.cat([rows.to(dtype), steps.to(dtype)], dim=-1)
    y, _ = short_convolution(
        known[..., held:].transpose(1, 2),
        weight.to(arithmetic(dtype)),
        cast(arithmetic(dtype), bias),
        activation=activation_of(name, activation),
        state=known[..., held - k + 1 : held].transpose(1, 2),
    )
    last = known[..., known.shape[-1] - held :]
    if conv_state_indices is None:
        conv_state.copy_(last)
    else:
        conv_state[conv_state_indices.long()] = last.to(conv_state.dtype)
    return y.transpose(1, 2).to(x.dtype).view(x.shape)


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`adder.ops.state_space_dual`, as mamba_ssm.ops.triton.ssd_combined calls it.

    Args:
        x, z: (b l h p).
        dt: (b l h).
        A, dt_bias: (h). D: (h) or (h p).
        B, C: (b l g n).
        chunk_size: not used: our kernels choose their own, and the numbers do not depend on it.
        initial_states: (b h p n).
        seq_idx: (b l) int32, non-decreasing: packed sequences.
        cu_seqlens, return_varlen_states: not served, as is a state_dtype other than float32.
        return_final_states: return the state after the last step (b h p n) too.

    Returns:
        y (b l h p) in x's type, or y and the final state.

    Raises:
        UsageError, ValueError, TypeError: an argument is not as above; the message names it.
    """
    name = "mamba_chunk_scan_combined"
    if return_varlen_states or cu_seqlens is not None:
        raise UsageError(
            f"{name}: cu_seqlens and return_varlen_states are not served: give seq_idx"
        )
    if state_dtype not in (None, torch.float32):
        raise UsageError(f"{name}: state_dtype is {state_dtype}, and states are float32 here")
    del chunk_size
    expect_tensors(name, x=x, dt=dt, A=A, B=B, C=C)
    dtype = widest(x, dt, B, C, z)
    real = arithmetic(dtype)
    y, last = state_space_dual(
        x.to(dtype),
        dt.to(dtype),
        A.to(real),
        B.to(dtype),
        C.to(dtype),
        cast(real, D),
        z=cast(dtype, z),
        dt_bias=cast(real, dt_bias),
        dt_softplus=bool(dt_softplus),
        dt_limit=dt_limit,
        state=cast(real, initial_states),
        seq_idx=seq_idx,
    )
    y = y.to(x.dtype)
    return (y, last) if return_final_states else y
