"""A language model one token at a time: in one native call where its modules are what the kernel knows."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from adder.layers import Mamba, RMSNorm, State
from adder.layers.quantized import QuantizedEmbedding, QuantizedLinear
from adder.ops.mamba_step import BlockWeights, MambaStack, StackWeights
from adder.ops.mamba_step.weights import Weight

if TYPE_CHECKING:
    from adder.models.language_model import LanguageModel

_LINEAR = (nn.Linear, QuantizedLinear)
_EMBEDDING = (nn.Embedding, QuantizedEmbedding)


class Decoder:
    """Steps a language model, without gradients.

    Where `refusal` is None a token is one native call (`adder.ops.mamba_step`); otherwise the model's own layers run.
    A decoder belongs to the weights as they lie: make a new one after `model.to(...)` or the like.
    """

    def __init__(self, model: "LanguageModel"):
        self.model = model
        self.refusal = _changed(model)
        self._stack: MambaStack | None = None
        if self.refusal is None:
            weights = stack_weights(model)
            self.refusal = MambaStack.refusal(weights)
            if self.refusal is None:
                self._stack = MambaStack(weights)

    @torch.no_grad()
    def step(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token of each stream, ids (b,), and return the logits (b, v) and the state after it."""
        if self._stack is None or not _is_plain(state, len(self.model.backbone.layers)):
            output = self.model.forward_layers(ids.unsqueeze(1), state)
            return output[0][:, 0], output[1]
        logits, after = self._stack.step(ids, [(each["conv"], each["ssm"]) for each in state])  # type: ignore[index, union-attr, call-overload]
        return logits, tuple({"conv": conv, "ssm": ssm} for conv, ssm in after)


def _is_plain(state: State, depth: int) -> bool:
    return (
        isinstance(state, tuple)
        and len(state) == depth
        and all(isinstance(each, dict) and each.keys() == {"conv", "ssm"} for each in state)
    )


def stack_weights(model: "LanguageModel") -> StackWeights:
    """Return the parameters of a model where they lie."""
    backbone = model.backbone
    blocks = []
    for block in backbone.blocks():
        mixer = block.mixer
        blocks.append(
            BlockWeights(
                norm=block.norm.weight,
                in_proj=_weight(mixer.in_proj),
                in_bias=mixer.in_proj.bias,
                conv_weight=mixer.conv1d.weight.squeeze(1),
                conv_bias=mixer.conv1d.bias,
                x_proj=_weight(mixer.x_proj),
                dt_proj=_weight(mixer.dt_proj),
                dt_bias=mixer.dt_proj.bias,
                A_log=mixer.A_log,
                D=mixer.D,
                out_proj=_weight(mixer.out_proj),
                out_bias=mixer.out_proj.bias,
            )
        )
    return StackWeights(
        blocks,
        _weight(backbone.embedding),
        backbone.norm_f.weight,
        _weight(model.lm_head),
        model.config.vocab_size,
        model.config.norm_epsilon,
    )


def _weight(module: nn.Module) -> Weight:
    if isinstance(module, QuantizedLinear | QuantizedEmbedding):
        return module.quantized
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _changed(model: "LanguageModel") -> str | None:
    """Say what in a model is not as the kernel takes it: a module of another class, or one with a hook."""
    dtype = model.backbone.norm_f.weight.dtype
    if dtype != torch.float32 and not model.config.residual_in_fp32:
        return f"residual_in_fp32 is off, and the parameters are {dtype}"
    if nn.modules.module._has_any_global_hook():
        return "there are hooks on all modules"
    for name, module, classes in _modules(model):
        if type(module) not in classes:
            return f"{name} is a {type(module).__name__}"
        if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
            return f"{name} has a hook"
    return None


def _modules(model: "LanguageModel") -> Iterator[tuple[str, nn.Module, tuple[type, ...]]]:
    backbone = model.backbone
    yield "backbone.embedding", backbone.embedding, _EMBEDDING
    yield "backbone.norm_f", backbone.norm_f, (RMSNorm,)
    yield "lm_head", model.lm_head, _LINEAR
    block_class = type(backbone.layers[0])
    for i, block in enumerate(backbone.blocks()):
        mixer, at = block.mixer, f"backbone.layers.{i}"
        yield at, block, (block_class,)
        yield f"{at}.norm", block.norm, (RMSNorm,)
        yield f"{at}.mixer", mixer, (Mamba,)
        yield f"{at}.mixer.conv1d", mixer.conv1d, (nn.Conv1d,)
        for name in ("in_proj", "x_proj", "dt_proj", "out_proj"):
            yield f"{at}.mixer.{name}", getattr(mixer, name), _LINEAR
