"""A language model one token at a time: in one native call where its modules are what the kernel knows."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from adder.layers import (
    GatedRMSNorm,
    Mamba,
    Mamba2,
    QuantizedEmbedding,
    QuantizedLinear,
    RMSNorm,
    State,
)
from adder.layers.linear import Linear, is_untouched
from adder.models.backbone import Backbone, Block
from adder.ops.mamba_step import BlockWeights, Mamba2BlockWeights, MambaStack, StackWeights
from adder.ops.mamba_step.weights import Weight

if TYPE_CHECKING:
    from adder.models.language_model import LanguageModel
    from adder.ops.mamba_step.gpu import GpuMambaStack

_LINEAR = (Linear, QuantizedLinear)
_EMBEDDING = (nn.Embedding, QuantizedEmbedding)


class Decoder:
    """Steps a language model, without gradients.

    Where `refusal` is None a token is one call of kernels (`adder.ops.mamba_step`), which on a GPU is one CUDA graph
    where a `spare` state is given; otherwise the model's own layers run.
    What `model.to(...)` does to the weights is noticed. A module or a parameter that is put in another's place is not:
    make a new decoder then.
    """

    def __init__(self, model: "LanguageModel"):
        self.model = model
        self._prepare()

    def _prepare(self) -> None:
        self.refusal = _changed(self.model)
        self._stack: MambaStack | GpuMambaStack | None = None
        self._held: list[tuple[Tensor, int]] = []  # the parameters, and where they lay
        if self.refusal is None:
            weights = stack_weights(self.model)
            try:
                self._stack = _stack(weights)
            except TypeError as error:  # there is no kernel for these weights
                self.refusal = str(error)
                return
            self._held = [(each, each.data_ptr()) for each in weights.tensors()]

    @staticmethod
    def wanted(input_ids: Tensor) -> bool:
        """Whether a call reads one token without gradients, on a CPU."""
        return (
            input_ids.shape[1] == 1
            and input_ids.device.type == "cpu"
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
        )

    def serves(self, state: State) -> bool:
        """Whether a token after this state is a native call: the kernel takes this state, and nothing is cast."""
        weight = self.model.backbone.norm_f.weight
        if self._stack is None or torch.is_autocast_enabled(weight.device.type):
            return False
        if not isinstance(state, tuple) or len(state) != len(self.model.backbone.layers):
            return False
        dtype = weight.dtype
        return all(
            isinstance(each, dict)
            and each.keys() == {"conv", "ssm"}
            and each["conv"].dtype == dtype  # type: ignore[union-attr]
            and each["ssm"].dtype == torch.float32  # type: ignore[union-attr]
            for each in state
        )

    @torch.no_grad()
    def step(self, ids: Tensor, state: State, spare: State | None = None) -> tuple[Tensor, State]:
        """Read one token of each stream, ids (b,), and return the logits (b, v) and the state after it.

        `spare` is a state that nobody needs any more: its memory may be used for the one that is returned.

        Raises:
            ValueError: an id outside the vocabulary, or a state of another batch size; the message says which.
        """
        if any(each.data_ptr() != at for each, at in self._held):
            self._prepare()
        if self._stack is None or not self.serves(state):
            now = self.model(ids.unsqueeze(1), state=state, logits_to_keep=1)
            return now.logits[:, 0], now.state
        into = _pairs(spare) if spare is not None and self.serves(spare) else None
        logits, pairs = self._stack.step(ids.long(), _pairs(state), into)
        return logits, tuple({"conv": conv, "ssm": ssm} for conv, ssm in pairs)


def _stack(weights: StackWeights) -> "MambaStack | GpuMambaStack":
    """The kernels of the device that the weights are on."""
    if weights.norm.is_cuda and find_spec("triton") is not None:
        from adder.ops.mamba_step.gpu import GpuMambaStack

        return GpuMambaStack(weights)
    return MambaStack(weights)


def _pairs(state: State) -> list[tuple[Tensor, Tensor]]:
    return [(each["conv"], each["ssm"]) for each in state]  # type: ignore[index, call-overload, misc]


def stack_weights(model: "LanguageModel") -> StackWeights:
    """Return the parameters of a model where they lie."""
    backbone = model.backbone
    blocks = [
        _mamba(block, block.mixer)
        if isinstance(block.mixer, Mamba)
        else _mamba2(block, cast(Mamba2, block.mixer))
        for block in backbone.blocks()
    ]
    return StackWeights(
        blocks,
        _weight(backbone.embedding),
        backbone.norm_f.weight,
        _weight(model.lm_head),
        model.config.vocab_size,
        model.config.norm_epsilon,
    )


def _mamba(block: Block, mixer: Mamba) -> BlockWeights:
    return BlockWeights(
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


def _mamba2(block: Block, mixer: Mamba2) -> Mamba2BlockWeights:
    norm = mixer.norm
    return Mamba2BlockWeights(
        norm=block.norm.weight,
        in_proj=_weight(mixer.in_proj),
        in_bias=mixer.in_proj.bias,
        conv_weight=mixer.conv1d.weight.squeeze(1),
        conv_bias=mixer.conv1d.bias,
        dt_bias=mixer.dt_bias,
        A_log=mixer.A_log,
        D=mixer.D,
        gate_norm=None if norm is None else norm.weight,
        out_proj=_weight(mixer.out_proj),
        out_bias=mixer.out_proj.bias,
        groups=mixer.ngroups,
        dt_limit=mixer.dt_limit,
        gate_eps=1.0 if norm is None else norm.eps,
        norm_before_gate=norm is not None and norm.norm_before_gate,
    )


def _weight(module: nn.Module) -> Weight:
    if isinstance(module, QuantizedLinear | QuantizedEmbedding):
        return module.quantized
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _changed(model: "LanguageModel") -> str | None:
    """Say what in a model is not as the kernel takes it: a module of another class, or one with a hook."""
    from adder.models.language_model import LanguageModel  # which imports this file

    if model.config.layer not in ("mamba", "mamba2"):
        return f"the blocks are {model.config.layer}"
    if model.config.mixer_norm_epsilon is not None:
        return "step size, B and C are normalised"
    dtype = model.backbone.norm_f.weight.dtype
    if dtype != torch.float32 and not model.config.residual_in_fp32:
        return f"residual_in_fp32 is off, and the parameters are {dtype}"
    if nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return "there are hooks on all modules"
    eps = model.config.norm_epsilon
    for name, module, classes in [("the model", model, (LanguageModel,)), *_modules(model)]:
        if type(module) not in classes:
            return f"{name} is a {type(module).__name__}"
        if not is_untouched(module, classes):
            return f"{name} has a hook"
        if name.endswith(("x_proj", "lm_head")) and module.bias is not None:
            return f"{name} has a bias"
        if isinstance(module, RMSNorm) and module.eps != eps:
            return f"{name} has another eps, {module.eps}, than the model's config, {eps}"
        if (
            isinstance(module, GatedRMSNorm)
            and module.group_size != model.config.d_inner // model.config.ngroups
        ):
            return f"{name} normalises other groups than the model's config says"
    return None


def _modules(model: "LanguageModel") -> Iterator[tuple[str, nn.Module, tuple[type, ...]]]:
    backbone = model.backbone
    yield "backbone", backbone, (Backbone,)
    yield "backbone.embedding", backbone.embedding, _EMBEDDING
    yield "backbone.norm_f", backbone.norm_f, (RMSNorm,)
    yield "lm_head", model.lm_head, _LINEAR
    for i, block in enumerate(backbone.blocks()):
        # Whoever goes through these stops at a mixer of another class.
        mixer, at = cast(Mamba | Mamba2, block.mixer), f"backbone.layers.{i}"
        yield at, block, (Block,)
        yield f"{at}.norm", block.norm, (RMSNorm,)
        yield f"{at}.mixer", mixer, (Mamba if model.config.layer == "mamba" else Mamba2,)
        yield f"{at}.mixer.conv1d", mixer.conv1d, (nn.Conv1d,)
        if isinstance(mixer, Mamba2) and mixer.norm is not None:
            yield f"{at}.mixer.norm", mixer.norm, (GatedRMSNorm,)
        for name in model.config.matrices:
            yield f"{at}.mixer.{name}", getattr(mixer, name), _LINEAR
