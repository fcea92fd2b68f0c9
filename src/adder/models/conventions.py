"""What Hugging Face's Trainer and PEFT take for granted of a model and its config, where adder's need nothing of it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from adder.errors import UsageError
from adder.models.backbone import Backbone

# Given to every causal model by PEFT, as None where the caller said nothing.
_UNSERVED = ("inputs_embeds", "output_attentions", "output_hidden_states", "return_dict")


def refuse_unserved(others: Mapping[str, object]) -> None:
    """Raise where a keyword argument that other libraries pass asks for something.

    Raises:
        UsageError: an argument that Hugging Face's models have and ours have not is neither None nor False.
        TypeError: nobody knows this argument.
    """
    for name, value in others.items():
        if name not in _UNSERVED:
            raise TypeError(f"LanguageModel: there is no argument {name}")
        if value is not None and value is not False:
            raise UsageError(
                f"LanguageModel: {name} was given, and a LanguageModel has no such thing"
            )


def share_of_loss(
    logits: Tensor, targets: Tensor, labels: Tensor, num_items_in_batch: Tensor | int
) -> Tensor:
    """Return what the mean loss of these rows adds to that of a batch of `num_items_in_batch` labels.

    The Trainer counts labels[:, 1:]. Where rows are packed or padded on the left, that is more than there are targets:
    the mean over the targets is weighed as the Trainer counts, so that the shares of a batch add up to 1.
    """
    total = F.cross_entropy(logits, targets, reduction="sum")
    counted = (labels[:, 1:] != -100).sum()
    return total * counted / ((targets != -100).sum().clamp(min=1) * num_items_in_batch)


class Conventions(nn.Module):
    """The names that Hugging Face's Trainer and PEFT look for in a language model. Abstract."""

    backbone: Backbone
    # The Trainer passes num_items_in_batch to forward, and counts labels without the first of each row.
    accepts_loss_kwargs = True
    loss_type = "ForCausalLM"
    # PEFT passes it on; transformers' generate, which would read it, is not ours.
    generation_config = None

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Keep only what enters each block for the backward pass, which runs the block again: the same numbers in a
        fraction of the memory, for a forward pass more.

        The arguments are the Trainer's.

        Raises:
            UsageError: they ask for anything else than every layer, without reentrance.
        """
        asked = {"every_n_layers": every_n_layers, "offload": offload}
        asked |= activation_checkpointing_kwargs or {}
        served = {"every_n_layers": 1, "offload": False, "use_reentrant": False}
        for name, value in asked.items():
            if name not in served or value != served[name]:
                raise UsageError(
                    f"activation_checkpointing_enable: {name} is {value!r}, and a LanguageModel checkpoints every "
                    "layer, without reentrance"
                )
        self.backbone.checkpoint_layers = True

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """`activation_checkpointing_enable`, under its older name."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)

    def activation_checkpointing_disable(self) -> None:
        """Keep what the backward pass needs, as at first."""
        self.backbone.checkpoint_layers = False

    gradient_checkpointing_disable = activation_checkpointing_disable

    def prepare_inputs_for_generation(self, *_: object, **__: object) -> None:
        """PEFT asks whether this is there; only transformers' own generate would call it.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "LanguageModel: transformers' generate does not serve it; call model.generate, which is its own"
        )


def drop_shared(module: nn.Module, state: dict[str, Tensor], prefix: str, _: object) -> None:
    """Leave a head that is the embedding out of a state dict, where it stands under the embedding's name.

    One tensor under two names is what safetensors, and so the Trainer, refuses to save. A state dict hook.
    """
    for name in _shared(module):
        state.pop(f"{prefix}lm_head.{name}", None)


def add_shared(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Give a head that is the embedding the embedding's entry, where a state dict has none for it. A hook."""
    for name in _shared(module):
        source = f"{prefix}backbone.embedding.{name}"
        if source in state:
            state.setdefault(f"{prefix}lm_head.{name}", state[source])


def _shared(module: nn.Module) -> list[str]:
    head, embedding = (module.get_submodule(each) for each in ("lm_head", "backbone.embedding"))
    pairs = (
        (name, getattr(head, name, None), getattr(embedding, name, None))
        for name in ("weight", "scales")
    )
    return [name for name, one, other in pairs if isinstance(one, Tensor) and one is other]


def expect_tie_unadapted(module: nn.Module) -> None:
    """Raise where PEFT put an adapter on the embedding or the head of a model in which they are one matrix.

    Merging would add the adapter to that matrix, and so to both of them. A copy of the whole (modules_to_save) is fine:
    `save_pretrained` sees it.

    Raises:
        UsageError: there is one.
    """
    for name in ("lm_head", "backbone.embedding"):
        given = module.get_submodule(name)
        if hasattr(given, "base_layer") or hasattr(given, "token_adapter"):
            raise UsageError(
                f"LanguageModel: there is an adapter on {name}, and config.tie_embeddings makes embedding and head one "
                "matrix: merged, it would change both. Adapt the projections (exclude_modules=['lm_head'] beside "
                "'all-linear'), or a model whose head is its own"
            )
