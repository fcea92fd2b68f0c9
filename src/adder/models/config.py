"""The sizes of a language model: checked before any memory is taken."""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from adder.errors import UsageError
from adder.models.checked import ModelConfig, check_count, check_flag, check_positive


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(ModelConfig):
    """Sizes and initialisation of a LanguageModel over Mamba blocks; the defaults are Mamba's.

    vocab_size counts the tokens that exist. The embedding is padded to a multiple of
    `pad_vocab_size_multiple` rows for speed; logits never include the padding.
    """

    kind: ClassVar[str] = "language_model"
    title: ClassVar[str] = "a language model"

    vocab_size: int
    d_model: int = 128
    n_layer: int = 6
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | Literal["auto"] = "auto"
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    dt_init_floor: float = 1e-4
    bias: bool = False
    conv_bias: bool = True
    norm_epsilon: float = 1e-5
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True
    residual_in_fp32: bool = True
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._check(field.name, field.type, getattr(self, field.name))
        if self.dt_min > self.dt_max:
            raise UsageError(f"config: dt_min {self.dt_min} is above dt_max {self.dt_max}")
        self.check_parameter_count()

    @staticmethod
    def _check(name: str, kind: object, value: object) -> None:
        if name == "dt_rank" and value == "auto":
            return
        if kind is bool:
            check_flag(name, value)
        elif kind is float:
            check_positive(name, value)
        else:
            check_count(name, value)

    @property
    def d_inner(self) -> int:
        """Channels inside a block."""
        return self.expand * self.d_model

    @property
    def rank(self) -> int:
        """dt_rank with "auto" worked out."""
        return math.ceil(self.d_model / 16) if self.dt_rank == "auto" else self.dt_rank

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding."""
        multiple = self.pad_vocab_size_multiple
        return -(-self.vocab_size // multiple) * multiple

    def parameter_count(self) -> int:
        """Return how many parameters the model has, a tied embedding counted once. No tensor is made."""
        d, inner, n, rank = self.d_model, self.d_inner, self.d_state, self.rank
        mixer = d * 2 * inner + inner * d + self.bias * (2 * inner + d)
        mixer += inner * self.d_conv + self.conv_bias * inner
        mixer += inner * (rank + 2 * n) + rank * inner + inner + inner * n + inner
        embeddings = self.padded_vocab_size * d * (1 if self.tie_embeddings else 2)
        return self.n_layer * (mixer + d) + d + embeddings
