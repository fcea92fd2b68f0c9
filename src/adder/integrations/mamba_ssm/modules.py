"""mamba_ssm's modules: adder's layers with the originals' constructors, state dicts and caches.

A cache is a pair of tensors that are written in place: conv_state (b c k), the last inputs of the convolution with the
newest last, and ssm_state. Nobody reads the oldest of the k columns, and it is zero here.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adder import layers
from adder.errors import UsageError
from adder.integrations.mamba_ssm.fused import rmsnorm_fn
from adder.ops.dtypes import arithmetic

Cache = tuple[Tensor, Tensor]


@dataclass
class InferenceParams:
    """What a stack of layers knows of a text that it reads in parts: mamba_ssm.utils.generation.InferenceParams.

    The caller moves `seqlen_offset` on after each call; 0 means that the text begins.
    """

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[int, Cache] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Begin another text."""
        self.max_seqlen, self.max_batch_size, self.seqlen_offset = max_seqlen, max_batch_size, 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


class _Cached(nn.Module):
    """A layer of ours whose state lies in tensors that are written in place. Abstract: stands before the layer."""

    layer_idx: int | None

    def step(
        self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read the next tokens (b l d_model), which may be more than one, and write the cache.

        Returns:
            The output, and the two tensors that were given.
        """
        return self._read(hidden_states, (conv_state, ssm_state), None), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Cache:
        """Return an empty cache. Its ssm_state is float32 at least where no dtype is given; max_seqlen is not used."""
        del max_seqlen, kwargs
        state = self.initial_state(batch_size)  # type: ignore[operator]
        conv, ssm = state["conv"], state["ssm"]
        conv = F.pad(conv, (0, 0, 1, 0)).transpose(1, 2)
        return conv.to(dtype or conv.dtype), ssm.to(dtype or ssm.dtype)

    def _read_with(self, u: Tensor, inference_params: Any, seq_idx: Tensor | None) -> Tensor:
        """Read u as the beginning of a text, or as what follows, by `inference_params`."""
        begins = inference_params.seqlen_offset == 0
        cache = self._get_states_from_cache(inference_params, len(u), initialize_states=begins)
        return self._read(u, cache, seq_idx)

    def _get_states_from_cache(
        self, inference_params: Any, batch_size: int, initialize_states: bool = False
    ) -> Cache:
        if self.layer_idx is None:
            raise UsageError(f"{type(self).__name__}: inference_params needs a layer_idx")
        caches = inference_params.key_value_memory_dict
        if self.layer_idx not in caches:
            caches[self.layer_idx] = self.allocate_inference_cache(batch_size, 0)
        conv, ssm = caches[self.layer_idx]
        if len(conv) != batch_size:
            raise UsageError(
                f"{type(self).__name__}: the cache of layer {self.layer_idx} is of {len(conv)} streams, and "
                f"{batch_size} came: begin with new inference_params"
            )
        if initialize_states:
            conv.zero_()
            ssm.zero_()
        return conv, ssm

    def _read(self, u: Tensor, cache: Cache, seq_idx: Tensor | None) -> Tensor:
        conv, ssm = cache
        # Copies, for what a backward pass reads must not be overwritten.
        state = {
            "conv": conv[..., 1:].transpose(1, 2).clone(),
            "ssm": ssm.to(arithmetic(ssm.dtype), copy=True),
        }
        y: Tensor
        y, last = super().forward(u, state, seq_idx=seq_idx)
        conv.copy_(F.pad(last["conv"].transpose(1, 2), (1, 0)))
        ssm.copy_(last["ssm"])
        return y


class Mamba(_Cached, layers.Mamba):
    """mamba_ssm.modules.mamba_simple.Mamba: y = layer(hidden_states), (b l d_model) to the same.

    Its arguments are the original's and `adder.layers.Mamba`'s. `use_fast_path` is not used: there is one path. With
    a dtype, A_log and D stay float32.

    Raises:
        UsageError: a size is not positive, or dt_init is neither random nor constant.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if dt_init not in ("random", "constant"):
            raise UsageError(f'Mamba: dt_init is {dt_init!r}, expected "random" or "constant"')
        with _on(device):
            super().__init__(
                d_model,
                d_state,
                d_conv,
                math.ceil(expand),
                dt_rank,
                d_inner=int(expand * d_model),
                bias=bias,
                conv_bias=conv_bias,
                dt_min=dt_min,
                dt_max=dt_max,
                dt_init_floor=dt_init_floor,
            )
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner, self.dt_rank = self.dt_proj.weight.shape
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        bound = self.dt_rank**-0.5 * dt_scale
        with torch.no_grad():
            if dt_init == "constant":
                self.dt_proj.weight.fill_(bound)
            else:
                self.dt_proj.weight.uniform_(-bound, bound)
        _convert(self, dtype, keep=("A_log", "D"))
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:  # type: ignore[override]
        """Return the output; with `inference_params` the text goes on where the last call left it."""
        if inference_params is not None:
            return self._read_with(hidden_states, inference_params, None)
        return layers.Mamba.forward(self, hidden_states)[0]


class Mamba2(_Cached, layers.Mamba2):
    """mamba_ssm.modules.mamba2.Mamba2: y = layer(u), (b l d_model) to the same.

    Its arguments are the original's and `adder.layers.Mamba2`'s. `use_mem_eff_path` and `sequence_parallel` are not
    used. With a dtype, D stays float32.

    Raises:
        UsageError: sizes do not fit, d_ssm is not all of expand * d_model, or a process_group is given.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: float = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        process_group: Any = None,
        sequence_parallel: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        inner = int(expand * d_model)
        if d_ssm not in (None, inner):
            raise UsageError(
                f"Mamba2: d_ssm is {d_ssm}, and only all of expand * d_model = {inner} is served"
            )
        if process_group is not None:
            raise UsageError("Mamba2: process_group is not served: give None")
        with _on(device):
            super().__init__(
                d_model,
                d_state,
                d_conv,
                math.ceil(expand),
                headdim,
                ngroups,
                chunk_size,
                d_inner=inner,
                D_has_hdim=D_has_hdim,
                rmsnorm=rmsnorm,
                norm_before_gate=norm_before_gate,
                A_init_range=A_init_range,
                dt_min=dt_min,
                dt_max=dt_max,
                dt_init_floor=dt_init_floor,
                dt_limit=dt_limit,
                bias=bias,
                conv_bias=conv_bias,
            )
        self.d_model, self.d_conv, self.expand = d_model, d_conv, expand
        self.d_inner = self.d_ssm = inner
        self.nheads, self.rmsnorm = len(self.A_log), rmsnorm
        self.D_has_hdim, self.norm_before_gate = D_has_hdim, norm_before_gate
        self.use_mem_eff_path, self.layer_idx = use_mem_eff_path, layer_idx
        self.sequence_parallel = sequence_parallel
        if conv_init is not None:
            with torch.no_grad():
                self.conv1d.weight.uniform_(-conv_init, conv_init)
        _convert(self, dtype, keep=("D",))

    def forward(  # type: ignore[override]
        self,
        u: Tensor,
        seqlen: int | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inference_params: Any = None,
    ) -> Tensor:
        """Return the output.

        Args:
            u: (b l d_model), or with `seqlen` (b l, d_model).
            seqlen: l.
            seq_idx: (b l) int32, non-decreasing: packed sequences.
            cu_seqlens: not served.
            inference_params: the text goes on where the last call left it.
        """
        if cu_seqlens is not None:
            raise UsageError("Mamba2: cu_seqlens is not served: give seq_idx")
        flat = u.shape
        u = u if seqlen is None else torch.unflatten(u, 0, (-1, seqlen))
        if inference_params is not None:
            y = self._read_with(u, inference_params, seq_idx)
        else:
            y = layers.Mamba2.forward(self, u, seq_idx=seq_idx)[0]
        return y if seqlen is None else y.view(flat)


class RMSNormGated(nn.Module):
    """mamba_ssm.ops.triton.layernorm_gated.RMSNorm: `rmsnorm_fn` with a weight."""

    bias: None

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Return RMSNorm(x) * silu(z), or with norm_before_gate=False RMSNorm(x * silu(z))."""
        return rmsnorm_fn(
            x,
            self.weight,
            None,
            z,
            self.eps,
            self.group_size,
            norm_before_gate=self.norm_before_gate,
        )


def _on(device: torch.device | str | None) -> Any:
    return nullcontext() if device is None else torch.device(device)


def _convert(layer: nn.Module, dtype: torch.dtype | None, keep: tuple[str, ...]) -> None:
    """Give the parameters their type, except some, and mark those that weight decay should leave alone."""
    for name, parameter in layer.named_parameters():
        if dtype is not None and name not in keep:
            parameter.data = parameter.data.to(dtype)
        if name in ("A_log", "D", "dt_bias"):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
