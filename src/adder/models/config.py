"""The sizes of a language model: checked before any memory is taken."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from adder.errors import UsageError
from adder.models.checked import (
    ModelConfig,
    check_choice,
    check_count,
    check_flag,
    check_positive,
    check_range,
    takes_notes,
)
from adder.ops.quantized_linear.weight import SCHEMES, layout

Layer = Literal["mamba", "mamba2", "s4", "s4d", "transformer", "lstm", "gru"]
_SELECTIVE = {"d_state", "d_conv", "expand", "conv_bias", "dt_min", "dt_max", "dt_init_floor"}
_SELECTIVE |= {"bias", "intermediate_size"}
_HEADS = {"headdim", "ngroups", "chunk_size", "D_has_hdim", "rmsnorm", "norm_before_gate"}
_LINEAR = {"d_state", "dt_min", "dt_max"}
# The settings that a kind of block has; another's are left as they are.
SETTINGS: dict[str, set[str]] = {
    "mamba": _SELECTIVE | {"dt_rank", "mixer_norm_epsilon"},
    "mamba2": _SELECTIVE | _HEADS | {"A_init_range", "dt_limit"},
    "s4": _LINEAR,
    "s4d": _LINEAR,
    "transformer": {"n_heads", "intermediate_size", "bias"},
    "lstm": {"intermediate_size", "bias"},
    "gru": {"intermediate_size", "bias"},
}
LAYERS = tuple(SETTINGS)
_RANGES = ("A_init_range", "dt_limit")
_OPTIONAL = ("d_state", "intermediate_size", "mixer_norm_epsilon", "n_heads")
_STATE_SIZE = {"mamba": 16, "mamba2": 128, "s4": 64, "s4d": 64}


@takes_notes
@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(ModelConfig):
    """Sizes and initialisation of a LanguageModel over Mamba or other blocks; the defaults are Mamba's.

    vocab_size counts the tokens that exist. The embedding is padded to a multiple of
    `pad_vocab_size_multiple` rows for speed; logits never include the padding. `weights` says how the matrices
    are stored: as floats, or rounded by `adder.models.quantize_model`.

    layer: the kind of every block. "mamba" and "mamba2"; "s4" and "s4d" (`adder.layers.S4Block` around them);
        "transformer" (attention, then a gated MLP), "lstm" and "gru", to compare with.
    d_state: None is 16 for Mamba, 128 for Mamba-2, 64 for S4 and S4D.
    intermediate_size: channels inside a block; None is expand * d_model for Mamba and Mamba-2, d_model for LSTM and
        GRU, and for the MLP of a Transformer 8 / 3 d_model, up to a multiple of 8.
    n_heads: of attention; None is one for each 64 channels.
    mixer_norm_epsilon: where given, the step size of low rank, B and C are each normalised with this eps and without
        weights, as FalconMamba does (arXiv:2410.05355). Mamba only, as dt_rank is.
    headdim, ngroups, chunk_size, D_has_hdim, rmsnorm, norm_before_gate, A_init_range, dt_limit: see `adder.Mamba2`.

    Raises:
        UsageError: a value is not of its kind, or belongs to another kind of block; the message names it.
    """

    kind: ClassVar[str] = "language_model"
    title: ClassVar[str] = "a language model"
    # PEFT asks. For a "mamba" it refuses adapters on out_proj, which transformers' kernels pass over and ours call.
    model_type: ClassVar[str] = "adder"

    vocab_size: int
    d_model: int = 128
    n_layer: int = 6
    d_state: int = None  # type: ignore[assignment]  # None becomes the size of `layer`
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
    layer: Layer = "mamba"
    intermediate_size: int | None = None
    mixer_norm_epsilon: float | None = None
    headdim: int = 64
    ngroups: int = 1
    chunk_size: int = 256
    D_has_hdim: bool = False
    rmsnorm: bool = True
    norm_before_gate: bool = False
    A_init_range: tuple[float, float] = (1.0, 16.0)
    dt_limit: tuple[float, float] = (0.0, math.inf)
    n_heads: int | None = None

    def __post_init__(self) -> None:
        check_choice("layer", self.layer, LAYERS)
        if self.d_state is None and self.layer in _STATE_SIZE:
            object.__setattr__(self, "d_state", _STATE_SIZE[self.layer])
        for field in dataclasses.fields(self):
            self._check(field.name, field.type, getattr(self, field.name))
        if self.dt_min > self.dt_max:
            raise UsageError(f"config: dt_min {self.dt_min} is above dt_max {self.dt_max}")
        own, some = SETTINGS[self.layer], set().union(*SETTINGS.values())
        for field in dataclasses.fields(self):
            if field.name in some - own and getattr(self, field.name) != field.default:
                having = " or ".join(each for each in LAYERS if field.name in SETTINGS[each])
                raise UsageError(
                    f"config: {field.name} is of {having} blocks, and layer is {self.layer!r}"
                )
        self._check_sizes()
        self.check_parameter_count()

    def _check_sizes(self) -> None:
        if self.weights != "float" and self.layer not in ("mamba", "mamba2"):
            raise UsageError(f"config: weights {self.weights} are of mamba and mamba2 blocks alone")
        if self.layer == "mamba2" and (
            self.d_inner % self.headdim or self.heads % self.ngroups or self.heads < 1
        ):
            raise UsageError(
                f"config: headdim {self.headdim} must divide the {self.d_inner} channels inside a block, and "
                f"ngroups {self.ngroups} the number of heads"
            )
        if self.layer in ("s4", "s4d") and self.d_state % 2:
            raise UsageError(
                f"config: d_state is {self.d_state}, expected an even number: S4 keeps one of each conjugate pair"
            )
        if self.layer == "transformer" and (
            self.d_model % self.heads or self.d_model // self.heads % 2
        ):
            raise UsageError(
                f"config: n_heads {self.heads} must divide d_model {self.d_model} into heads of an even width"
            )

    @staticmethod
    def _check(name: str, kind: object, value: object) -> None:
        if name == "layer" or (name == "dt_rank" and value == "auto"):
            return
        if name in _OPTIONAL and value is None:
            return
        if name == "weights":
            check_choice(name, value, ("float", *SCHEMES))
        elif name in _RANGES:
            check_range(name, value, positive=name == "A_init_range")
        elif kind is bool:
            check_flag(name, value)
        elif kind is float or name == "mixer_norm_epsilon":
            check_positive(name, value)
        else:
            check_count(name, value)

    def get_text_config(self) -> "LanguageModelConfig":
        """Return this config: Hugging Face's Trainer asks for the one of the language model in a larger model."""
        return self

    @property
    def d_inner(self) -> int:
        """Channels inside a block."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        if self.layer == "transformer":
            return -(-self.d_model // 3) * 8
        return self.d_model * (self.expand if self.layer in ("mamba", "mamba2") else 1)

    @property
    def heads(self) -> int:
        """Heads of a Mamba-2 or a Transformer block."""
        if self.layer == "transformer":
            return max(1, self.d_model // 64) if self.n_heads is None else self.n_heads
        return self.d_inner // self.headdim

    @property
    def rank(self) -> int:
        """dt_rank with "auto" worked out."""
        return math.ceil(self.d_model / 16) if self.dt_rank == "auto" else self.dt_rank

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding."""
        multiple = self.pad_vocab_size_multiple
        return -(-self.vocab_size // multiple) * multiple

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """The projections of a Mamba or Mamba-2 block, and their shapes (out, in)."""
        d, inner, n, rank = self.d_model, self.d_inner, self.d_state, self.rank
        if self.layer == "mamba2":
            rows = 2 * inner + 2 * self.ngroups * n + self.heads
            return {"in_proj": (rows, d), "out_proj": (d, inner)}
        return {
            "in_proj": (2 * inner, d),
            "x_proj": (rank + 2 * n, inner),
            "dt_proj": (inner, rank),
            "out_proj": (d, inner),
        }

    def parameter_count(self) -> int:
        """Return how many parameters the model has, a tied embedding counted once. No tensor is made."""
        d = self.d_model
        block = self._selective() if self.layer in ("mamba", "mamba2") else self._other()
        embeddings = self.padded_vocab_size * d * (1 if self.tie_embeddings else 2)
        return self.n_layer * (block + d) + d + embeddings

    def _selective(self) -> int:
        """Count the parameters of a Mamba or Mamba-2 mixer."""
        d, inner, n, heads = self.d_model, self.d_inner, self.d_state, self.heads
        count = sum(rows * columns for rows, columns in self.matrices.values())
        count += self.bias * (self.matrices["in_proj"][0] + d)
        if self.layer == "mamba2":
            convolved = inner + 2 * self.ngroups * n
            count += 2 * heads + (inner if self.D_has_hdim else heads) + self.rmsnorm * inner
        else:
            convolved = inner
            count += inner * n + 2 * inner
        return count + convolved * (self.d_conv + self.conv_bias)

    def _other(self) -> int:
        """Count the parameters of another mixer, with the norm and the MLP behind attention."""
        d, inner = self.d_model, self.d_inner
        if self.layer == "transformer":
            return 4 * d * d + 3 * d * inner + d + self.bias * (5 * d + 2 * inner)
        if self.layer in ("lstm", "gru"):
            gates = 4 if self.layer == "lstm" else 3
            return gates * inner * (d + inner + 2) + inner * d + self.bias * d
        # A, B and C of every channel, of S4 also P; complex numbers count as two. dt, D, and the map behind.
        numbers = 8 if self.layer == "s4" else 6
        return numbers * d * (self.d_state // 2) + 2 * d + 2 * d * (d + 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values. What came later than the first Mamba is there where it is used."""
        later = [field.name for field in dataclasses.fields(self)]
        later = later[later.index("weights") :]
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {
            name: value
            for name, value in super().to_dict().items()
            if name not in later or getattr(self, name) != defaults[name]
        }

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
        for name, shape in self.matrices.items():
            count += self.n_layer * _grown(*shape, self.scheme_of(name))
        heads = 1 if self.tie_embeddings else 2
        return count + heads * _grown(
            self.padded_vocab_size, self.d_model, self.scheme_of("embedding")
        )


def _grown(rows: int, columns: int, scheme: str) -> int:
    """How many more numbers a matrix is as codes and scales."""
    return sum(math.prod(shape) for shape in layout(rows, columns, scheme)) - rows * columns
