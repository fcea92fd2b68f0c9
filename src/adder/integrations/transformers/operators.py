"""Our operators with the arguments of those that Hugging Face's modeling files look up, and how one replaces another.

An operator returns NotImplemented for a call that it does not serve: the original serves that one.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from adder.errors import UsageError
from adder.integrations import functions
from adder.integrations.layouts import ACTIVATIONS
from adder.ops import rms_norm
from adder.ops.dtypes import arithmetic

Operator = Callable[..., Any]
_states_before: ContextVar[list[Tensor] | None] = ContextVar("_states_before", default=None)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def in_place_of(original: Operator, ours: Operator, count: Callable[[bool], None]) -> Operator:
    """Return `ours`, with `original` for what it does not serve and for what is exported. `count` hears which ran."""

    def operator(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return original(*args, **kwargs)
        result = ours(*args, **kwargs)
        served = result is not NotImplemented
        if not torch.compiler.is_compiling():
            count(served)
        return result if served else original(*args, **kwargs)

    operator.__wrapped__ = original  # type: ignore[attr-defined]
    return operator


def not_fused(*_: Any, **__: Any) -> None:
    """A whole mixer as one call, in training. None means that the mixer calls its parts.

    The fused kernels do not see the padding mask that a mixer applies behind its convolution: with a bias there,
    padding leaks into the scan. FalconMamba's also normalises another step size than its own evaluation does.
    """


def continuing(original: Operator) -> Operator:
    """The `forward` of a Mamba-1 mixer that goes on from the state in its cache when it reads several tokens.

    The original starts its scan from zero there: its scan takes no state. Ours does, and this is how it gets one.
    """

    def forward(
        self: nn.Module, hidden_states: Tensor, cache_params: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        goes_on = cache_params is not None and hidden_states.shape[1] > 1
        if not (goes_on and cache_params.has_previous_state(self.layer_idx)):
            return original(self, hidden_states, cache_params, *args, **kwargs)
        state = _kept(cache_params.layers[self.layer_idx].recurrent_states[0])
        # Zamba has a scan for each head.
        states = [state] if state.ndim == 3 else list(state.unbind(1))
        token = _states_before.set(states)
        try:
            result = original(self, hidden_states, cache_params, *args, **kwargs)
        finally:
            _states_before.reset(token)
        if states:
            raise UsageError(
                f"{type(self).__name__}: its scan was not served by adder ({hidden_states.dtype}), and the original "
                "loses the state between pieces of a prompt: feed it whole, or token by token"
            )
        return result

    forward.__wrapped__ = original  # type: ignore[attr-defined]
    return forward


def convolution(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    **_: Any,
) -> Any:
    """`causal_conv1d_fn` of the Mamba-2 family, packed sequences too."""
    if not _serves(hidden_states, activation=activation) or cu_seqlens is not None:
        return NotImplemented
    return functions.causal_conv1d_fn(
        hidden_states, weight, bias, _packing(seq_idx), activation=activation
    )


def convolution_without_packing(*args: Any, seq_idx: Tensor | None = None, **kwargs: Any) -> Any:
    """`causal_conv1d_fn` of the Mamba family, whose mixers keep packed sequences apart in the convolution alone."""
    if seq_idx is not None:
        raise UsageError(
            "transformers gives seq_idx to the convolution of this model and not to its scan, through which packed "
            "sequences would leak into each other: give them as a batch, or use adder.LanguageModel"
        )
    return convolution(*args, **kwargs)


def convolution_update(
    hidden_states: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **_: Any,
) -> Any:
    """`causal_conv1d_update`: one step, in place."""
    if hidden_states.shape[-1] != 1:
        raise UsageError(
            f"a step of the convolution got {hidden_states.shape[-1]} columns: an attention_mask longer than the new "
            "token was multiplied into it, and would corrupt the state. Beside a cache give the mask of the new "
            "token alone, or none"
        )
    if not _serves(hidden_states, conv_state, activation=activation):
        return NotImplemented
    return functions.causal_conv1d_update(hidden_states, conv_state, weight, bias, activation)


def scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,
) -> Any:
    """`mamba_selective_scan`"""
    if not _serves(hidden_states, dt, B, C, z):
        return NotImplemented
    before = _states_before.get()
    return functions.selective_scan_fn(
        hidden_states,
        dt,
        A,
        B,
        C,
        D,
        z,
        delta_bias,
        delta_softplus,
        return_last_state,
        state=None if before is None else before.pop(0),
    )


def scan_update(
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    z: Tensor | None = None,
    **_: Any,
) -> Any:
    """`mamba_selective_state_update` and `mamba2_selective_state_update`: one step, in place."""
    if not _serves(hidden_states, state, dt, B, C, z):
        return NotImplemented
    return functions.selective_state_update(
        state, hidden_states, dt, A, B, C, D, z, dt_bias, dt_softplus
    )


def chunk_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    z: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    **_: Any,
) -> Any:
    """`mamba2_chunk_scan`"""
    if not _serves(hidden_states, dt, B, C, z) or cu_seqlens is not None or dt_limit[0] < 0:
        return NotImplemented
    return functions.mamba_chunk_scan_combined(
        hidden_states,
        dt,
        A,
        B,
        C,
        chunk_size,
        D,
        z,
        dt_bias,
        _kept(initial_states),
        _packing(seq_idx),
        dt_softplus=dt_softplus,
        dt_limit=dt_limit,
        return_final_states=return_final_states,
    )


def norm(self: Any, hidden_states: Tensor) -> Any:
    """The `forward` of a family's RMSNorm. One that is compiled is left to the compiler, which fuses it."""
    x, weight = hidden_states, self.weight
    type_is_kept = torch.promote_types(weight.dtype, x.dtype) == x.dtype
    if torch.compiler.is_compiling() or not type_is_kept or not _serves(x, weight):
        return NotImplemented
    return rms_norm(x, weight.to(arithmetic(x.dtype)), eps=self.variance_epsilon)


def _serves(*signals: Tensor | None, activation: str | None = None) -> bool:
    return activation in ACTIVATIONS and all(
        each is None
        # A tensor that is distributed or quantised is of a class of its own.
        or (type(each) in (Tensor, nn.Parameter) and each.dtype in DTYPES and each.numel() > 0)
        for each in signals
    )


def _kept(state: Tensor | None) -> Any:
    """A state as a backward pass may read it: the cache that it lies in will be overwritten."""
    return state.clone() if state is not None and torch.is_grad_enabled() else state


def _packing(seq_idx: Tensor | None) -> Tensor | None:
    return None if seq_idx is None else seq_idx.to(torch.int32)
