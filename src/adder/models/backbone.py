"""What lies between the tokens and the head of a language model: an embedding, blocks, a norm."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from adder.errors import UsageError
from adder.layers import (
    S4,
    S4D,
    Attention,
    Mamba,
    Mamba2,
    QuantizedEmbedding,
    QuantizedLinear,
    Recurrent,
    RMSNorm,
    S4Block,
    State,
)
from adder.layers.linear import Linear
from adder.models.config import LanguageModelConfig

Mixer = Mamba | Mamba2 | S4Block | Attention | Recurrent


def _mixer(config: LanguageModelConfig) -> Mixer:
    if config.layer == "transformer":
        return Attention(config.d_model, config.heads, bias=config.bias)
    if config.layer in ("lstm", "gru"):
        cell: Literal["lstm", "gru"] = "lstm" if config.layer == "lstm" else "gru"
        return Recurrent(config.d_model, cell, config.d_inner, bias=config.bias)
    if config.layer in ("s4", "s4d"):
        kind = S4 if config.layer == "s4" else S4D
        sizes = (config.d_model, config.d_state)
        return S4Block(kind(*sizes, dt_min=config.dt_min, dt_max=config.dt_max))
    if config.layer == "mamba2":
        return Mamba2(
            config.d_model,
            config.d_state,
            config.d_conv,
            config.expand,
            config.headdim,
            config.ngroups,
            config.chunk_size,
            D_has_hdim=config.D_has_hdim,
            rmsnorm=config.rmsnorm,
            norm_before_gate=config.norm_before_gate,
            A_init_range=config.A_init_range,
            dt_min=config.dt_min,
            dt_max=config.dt_max,
            dt_init_floor=config.dt_init_floor,
            dt_limit=config.dt_limit,
            bias=config.bias,
            conv_bias=config.conv_bias,
            norm_eps=config.norm_epsilon,
            d_inner=config.d_inner,
        )
    return Mamba(
        config.d_model,
        config.d_state,
        config.d_conv,
        config.expand,
        config.dt_rank,
        bias=config.bias,
        conv_bias=config.conv_bias,
        dt_min=config.dt_min,
        dt_max=config.dt_max,
        dt_init_floor=config.dt_init_floor,
        d_inner=config.d_inner,
        mixer_norm_eps=config.mixer_norm_epsilon,
    )


def weight_of(mixer: Mixer) -> Tensor:
    """Return a parameter whose type is the one a mixer computes in: never a rounded matrix."""
    if isinstance(mixer, Mamba | Mamba2):
        return mixer.conv1d.weight
    return mixer.output_linear.weight if isinstance(mixer, S4Block) else mixer.out_proj.weight


class MLP(nn.Module):
    """y = out_proj(silu(a) * b), (a, b) = in_proj(x): SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, d_model: int, hidden: int, bias: bool):
        super().__init__()
        self.in_proj = Linear(d_model, 2 * hidden, bias=bias)
        self.out_proj = Linear(hidden, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.in_proj(x).chunk(2, dim=-1)
        return self.out_proj(F.silu(gate) * value)  # type: ignore[no-any-return]


class Block(nn.Module):
    """residual + mixer(norm(residual)), and of a Transformer residual + mlp(norm2(residual)) behind it"""

    def __init__(self, config: LanguageModelConfig):
        super().__init__()
        self.mixer = _mixer(config)
        if config.weights != "float":
            _make_room(self.mixer, config)
        self.norm = RMSNorm(config.d_model, config.norm_epsilon)
        if config.layer == "transformer":
            self.norm2 = RMSNorm(config.d_model, config.norm_epsilon)
            self.mlp = MLP(config.d_model, config.d_inner, config.bias)
        self.has_mlp = config.layer == "transformer"

    def forward(
        self,
        residual: Tensor,
        state: State | None,
        seq_idx: Tensor | None,
        padding: Tensor | None,
    ) -> tuple[Tensor, State | None]:
        dtype = weight_of(self.mixer).dtype
        normed = self.norm(residual).to(dtype)
        y, state = self.mixer(normed, state, seq_idx=seq_idx, padding=padding)
        residual = residual + y
        if self.has_mlp:
            residual = residual + self.mlp(self.norm2(residual).to(dtype))
        return residual, state


class Backbone(nn.Module):
    """Embedding, blocks, and the last norm."""

    def __init__(self, config: LanguageModelConfig):
        super().__init__()
        self.residual_in_fp32 = config.residual_in_fp32
        self.checkpoint_layers = False
        kind = nn.Embedding if config.weights == "float" else QuantizedEmbedding
        self.embedding = kind(config.padded_vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model, config.norm_epsilon)

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks; an nn.ModuleList only knows them as modules."""
        for layer in self.layers:
            assert isinstance(layer, Block)
            yield layer

    def forward(
        self,
        input_ids: Tensor,
        state: State | None,
        seq_idx: Tensor | None,
        padding: Tensor | None = None,
    ) -> tuple[Tensor, State | None]:
        residual = self.embedding(input_ids)
        if self.residual_in_fp32 and residual.dtype != torch.float64:
            residual = residual.float()
        if state is None:
            for layer in self.layers:
                residual, _ = self._run(layer, residual, None, seq_idx, padding)
            return self.norm_f(residual), None
        if not isinstance(state, tuple) or len(state) != len(self.layers):
            raise UsageError(
                f"LanguageModel: state is not one of this model, which has {len(self.layers)} layers; "
                "see initial_state"
            )
        last: list[State] = []
        for layer, before in zip(self.layers, state, strict=True):
            residual, after = self._run(layer, residual, before, seq_idx, padding)
            assert after is not None
            last.append(after)
        return self.norm_f(residual), tuple(last)

    def _run(
        self,
        layer: nn.Module,
        residual: Tensor,
        state: State | None,
        seq_idx: Tensor | None,
        padding: Tensor | None,
    ) -> tuple[Tensor, State | None]:
        if not (self.checkpoint_layers and torch.is_grad_enabled()):
            return layer(residual, state, seq_idx, padding)  # type: ignore[no-any-return]
        # The random state is kept for what others put into a block, as the dropout of an adapter.
        return checkpoint(  # type: ignore[no-any-return]
            layer, residual, state, seq_idx, padding, use_reentrant=False
        )


def _make_room(mixer: nn.Module, config: LanguageModelConfig) -> None:
    """Put a QuantizedLinear of zeros in the place of each projection."""
    for name in config.matrices:
        linear = getattr(mixer, name)
        room = QuantizedLinear(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            scheme=config.scheme_of(name),
        )
        if linear.bias is not None:
            room.bias = linear.bias
        setattr(mixer, name, room)
