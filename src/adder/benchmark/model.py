"""Our own model as a subject of the measuring loop: one function for each thing that it is asked."""

from typing import Any

import torch
from torch import Tensor

from adder.benchmark.peers.serve import Subject
from adder.layers import State
from adder.models import LanguageModel, LanguageModelConfig
from adder.models.decoder import Decoder
from adder.models.quantized import quantize_model
from adder.ops.quantized_linear.weight import Scheme

ROUNDED: dict[str, Scheme] = {"int8": "int8", "int4": "int4"}


class Adder(Subject):
    """LanguageModel with random weights, in one of the precisions."""

    continues = True
    model: LanguageModel

    @staticmethod
    def library() -> str:
        from adder import __version__

        return __version__

    def __init__(self, config: dict[str, Any], precision: str):
        self.model = make_model(LanguageModelConfig(**config), precision)
        self.decoder: Decoder | None = None
        self.made: State | None = None
        self.spare: State | None = None

    def read(self, ids: Tensor, state: Any) -> Any:
        state = self.model.initial_state(len(ids)) if state is None else state
        return self.model(ids, state=state, logits_to_keep=1).state

    def write(self, last: Tensor, state: Any) -> tuple[Tensor, Any]:
        if self.decoder is None:
            self.decoder = Decoder(self.model)  # what generate does before its first token
        # As generate does: the memory of a state that was made here and is over takes the one after the next.
        going_on = state is self.made
        logits, after = self.decoder.step(last[:, 0], state, self.spare if going_on else None)
        self.spare, self.made = state if going_on else None, after
        return logits.argmax(-1, keepdim=True), after

    def loss(self, ids: Tensor) -> Tensor:
        loss: Tensor = self.model(ids, labels=ids).loss
        return loss


def make_model(config: LanguageModelConfig, precision: str) -> LanguageModel:
    """Return a model of random weights: float32, bfloat16, int8 or int4."""
    model = LanguageModel(config)
    if precision in ROUNDED:
        return quantize_model(model, ROUNDED[precision])
    return model.to(getattr(torch, precision))


def flops_per_token(config: LanguageModelConfig, head: bool) -> int:
    """Floating-point operations of the matrix products of one token, two for each weight.

    The scan, the convolution and the norms are left out, and so is the head unless it is asked for: reading
    a text needs it once.
    """
    block = sum(rows * columns for rows, columns in config.matrices.values())
    return 2 * (config.n_layer * block + (config.vocab_size * config.d_model if head else 0))
