"""What lies between the tokens and the head of a language model: an embedding, blocks, a norm."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adder.errors import UsageError
from adder.layers import Mamba, Mamba2, QuantizedEmbedding, QuantizedLinear, RMSNorm, State
from adder.models.config import LanguageModelConfig


def _mixer(config: LanguageModelConfig) -> Mamba | Mamba2:
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


class Block(nn.Module):
    """residual + mixer(norm(residual))"""

    def __init__(self, config: LanguageModelConfig):
        super().__init__()
        self.mixer = _mixer(config)
        if config.weights != "float":
            _make_room(self.mixer, config)
        self.norm = RMSNorm(config.d_model, config.norm_epsilon)

    def forward(
        self,
        residual: Tensor,
        state: State | None,
        seq_idx: Tensor | None,
        padding: Tensor | None,
    ) -> tuple[Tensor, State | None]:
        normed = self.norm(residual).to(self.mixer.conv1d.weight.dtype)  # never rounded to integers
        y, state = self.mixer(normed, state, seq_idx=seq_idx, padding=padding)
        return residual + y, state


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


def _make_room(mixer: Mamba | Mamba2, config: LanguageModelConfig) -> None:
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
