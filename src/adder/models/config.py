"""The sizes of a language model: checked before any memory is taken."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from adder.errors import UsageError
from adder.models.checked import ModelConfig, check_choice, check_count, check_flag, check_positive
from adder.ops.quantized_linear.weight import SCHEMES, layout


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(ModelConfig):
    """Sizes and initialisation of a LanguageModel over Mamba blocks; the defaults are Mamba's.

    vocab_size counts the tokens that exist. The embedding is padded to a multiple of
    `pad_vocab_size_multiple` rows for speed; logits never include the padding. `weights` says how the matrices
    are stored: as floats, or rounded by `adder.models.quantize_model`.
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
    weights: Literal["float", "int8", "int4"] = "float"

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
        if name == "weights":
            check_choice(name, value, ("float", *SCHEMES))
        elif kind is bool:
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

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values. Those of a float model are as they were before there were others."""
        values = super().to_dict()
        if self.weights == "float":
            del values["weights"]
        return values

    def scheme_of(self, matrix: str) -> Literal["int8", "int4"]:
        """Return how a matrix of a model with rounded weights is stored.

        Of an int4 model the two large ones of a block are int4: the others would lose more than they save.
        """
        return "int4" if self.weights == "int4" and matrix in ("in_proj", "out_proj") else "int8"

    def stored_count(self) -> int:
        """Return how many numbers a file of the model holds: of a rounded matrix its codes and its scales."""
        count = self.parameter_count()
        if self.weights == "float":
            return count
        d, inner, rank = self.d_model, self.d_inner, self.rank
        matrices = {
            "in_proj": (2 * inner, d),
            "x_proj": (rank + 2 * self.d_state, inner),
            "dt_proj": (inner, rank),
            "out_proj": (d, inner),
        }
        for name, shape in matrices.items():
            count += self.n_layer * _grown(*shape, self.scheme_of(name))
        heads = 1 if self.tie_embeddings else 2
        return count + heads * _grown(self.padded_vocab_size, d, self.scheme_of("embedding"))


def _grown(rows: int, columns: int, scheme: str) -> int:
    """How many more numbers a matrix is as codes and scales."""
    return sum(math.prod(shape) for shape in layout(rows, columns, scheme)) - rows * columns
