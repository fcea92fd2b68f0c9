"""The sizes of a sequence classifier: checked before any memory is taken."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from adder.errors import UsageError
from adder.layers import s4, s4d
from adder.models.checked import (
    ModelConfig,
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_positive,
)
from adder.theory.dplr import nplr
from adder.theory.hippo import diagonal

_S4_BLOCK = {
    **{"d_state": 64, "n_ssm": None, "channels_out": 1, "l_max": None, "bandlimit": None},
    **{"ssm_learning_rate": 1e-3, "activation": "gelu", "glu": True},
}
# What each layer can be told beside the settings that all of them have, and its defaults.
LAYER_SETTINGS: dict[str, dict[str, Any]] = {
    "s4": {**_S4_BLOCK, "measure": "legs", "rank": None},
    "s4d": {**_S4_BLOCK, "init": "legs", "method": "zoh"},
    "mamba": {"d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto"},
}
NORMS = ("layer", "rms")
POOLINGS = ("mean", "last")
_OF_LAYERS = sorted({name for settings in LAYER_SETTINGS.values() for name in settings})


@dataclass(frozen=True, kw_only=True)
class SequenceClassifierConfig(ModelConfig):
    """Sizes of a SequenceClassifier.

    The inputs are tokens, and `vocab_size` says how many there are, or real values, and `d_input`
    says how many at each step. The settings that only some layers have are None where the layer has
    none of that name; not given, they are the layer's default.

    Args:
        classes: how many there are; `labels` are their names.
        input_mean, input_std: of each input channel over the training data. The model subtracts
            the one and divides by the other, so that every stream is scaled as the training was.
        sampling_rate: of the training data in Hz, where it has one.
        layer: "s4", "s4d" or "mamba".
        dropout: in every block; with `tie_dropout` a channel is dropped for all steps of a sequence at once,
            as state-spaces/s4 does, which also costs next to nothing.
        prenorm: a block is x + mixer(norm(x)), with a norm after the last one where `final_norm`
            holds; otherwise it is norm(x + mixer(x)).
        pooling: what the decoder reads: the "mean" over all steps, or the "last" one.
        bidirectional: every layer reads the sequence from both ends; there is no state then.
        d_state, n_ssm, channels_out, measure, rank, l_max, bandlimit, init, method: see `adder.S4`
            and `adder.S4D`. n_ssm None is one for each channel.
        ssm_learning_rate: of A, B and the step sizes of S4 and S4D, whatever that of the rest is.
        activation, glu: see `adder.layers.S4Block`.
        d_conv, expand, dt_rank: see `adder.Mamba`.
    """

    kind: ClassVar[str] = "classifier"
    title: ClassVar[str] = "a sequence classifier"

    classes: int
    labels: tuple[str, ...] = ()
    vocab_size: int | None = None
    d_input: int | None = None
    input_mean: tuple[float, ...] = ()
    input_std: tuple[float, ...] = ()
    sampling_rate: float | None = None
    layer: str = "s4d"
    d_model: int = 128
    n_layer: int = 4
    dropout: float = 0.0
    tie_dropout: bool = True
    norm: str = "layer"
    norm_epsilon: float = 1e-5
    prenorm: bool = True
    final_norm: bool = True
    pooling: str = "mean"
    bidirectional: bool = False
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    d_state: int | None = None
    n_ssm: int | None = None
    channels_out: int | None = None
    ssm_learning_rate: float | None = None
    bandlimit: float | None = None
    activation: str | None = None
    glu: bool | None = None
    measure: str | None = None
    rank: int | None = None
    l_max: int | None = None
    init: str | None = None
    method: str | None = None
    d_conv: int | None = None
    expand: int | None = None
    dt_rank: int | str | None = None

    def __post_init__(self) -> None:
        check_choice("layer", self.layer, tuple(LAYER_SETTINGS))
        self._fill_layer_settings()
        for name in ("classes", "d_model", "n_layer"):
            check_count(name, getattr(self, name))
        for name in ("norm_epsilon", "dt_min", "dt_max"):
            check_positive(name, getattr(self, name))
        for name in ("tie_dropout", "prenorm", "final_norm", "bidirectional"):
            check_flag(name, getattr(self, name))
        check_choice("norm", self.norm, NORMS)
        check_choice("pooling", self.pooling, POOLINGS)
        check_number("dropout", self.dropout)
        if not 0 <= self.dropout < 1:
            raise UsageError(f"config: dropout is {self.dropout!r}, expected 0 or more, below 1")
        if self.dt_min > self.dt_max:
            raise UsageError(f"config: dt_min {self.dt_min} is above dt_max {self.dt_max}")
        if self.sampling_rate is not None:
            check_positive("sampling_rate", self.sampling_rate)
        self._check_classes()
        self._check_inputs()
        self._check_layer_settings()
        self.check_parameter_count()

    def _fill_layer_settings(self) -> None:
        own = LAYER_SETTINGS[self.layer]
        for name in _OF_LAYERS:
            if getattr(self, name) is None:
                object.__setattr__(self, name, own.get(name))
            elif name not in own:
                having = " or ".join(k for k, v in LAYER_SETTINGS.items() if name in v)
                raise UsageError(
                    f"config: {name} is a setting of {having}, and the layer is {self.layer}"
                )

    def _check_classes(self) -> None:
        if self.classes < 2:
            raise UsageError(f"config: classes is {self.classes}, expected at least 2")
        if not all(isinstance(label, str) for label in self.labels):
            raise UsageError(f"config: labels holds {self.labels!r}, expected words")
        if self.labels and len(set(self.labels)) != self.classes:
            raise UsageError(
                f"config: labels names {len(set(self.labels))} classes, and classes is {self.classes}"
            )

    def _check_inputs(self) -> None:
        if (self.vocab_size is None) == (self.d_input is None):
            raise UsageError(
                "config: give either vocab_size, for tokens, or d_input, for real values"
            )
        name = "vocab_size" if self.d_input is None else "d_input"
        check_count(name, getattr(self, name))
        for name in ("input_mean", "input_std"):
            values = getattr(self, name)
            for value in values:
                (check_number if name == "input_mean" else check_positive)(name, value)
            if len(values) not in (0, self.d_input):
                raise UsageError(
                    f"config: {name} has {len(values)} numbers, expected one for each of "
                    f"{self.d_input or 'no'} input channels"
                )

    def _check_layer_settings(self) -> None:
        whole = {"d_state", "n_ssm", "channels_out", "rank", "l_max", "d_conv", "expand", "dt_rank"}
        for name in LAYER_SETTINGS[self.layer]:
            value = getattr(self, name)
            if value is None or (name == "dt_rank" and value == "auto"):
                continue
            if name in whole:
                check_count(name, value)
            elif name in ("ssm_learning_rate", "bandlimit"):
                check_positive(name, value)
            elif name == "glu":
                check_flag(name, value)
            elif not isinstance(value, str):
                raise UsageError(f"config: {name} is {value!r}, expected a word")
        if self.layer == "mamba":
            return
        if self.d_state is None or self.d_state % 2:
            raise UsageError(
                f"config: d_state is {self.d_state}, expected an even number: "
                f"{self.layer} keeps one of each conjugate pair"
            )
        if self.n_ssm is not None and self.d_model % self.n_ssm:
            raise UsageError(
                f"config: n_ssm is {self.n_ssm}, expected a divisor of d_model {self.d_model}"
            )
        self._check_start()

    def _check_start(self) -> None:
        """Raise what `adder.theory` says of a measure, a rank, or a diagonal that there is not."""
        if self.layer == "s4":
            self._rank_of_P()
            return
        for name in s4d.SEVERAL.get(self.init or "", (self.init or "",)):
            # A generator of its own: a check must not draw from the one that training draws from.
            diagonal(name.removeprefix("diag-"), 2, generator=torch.Generator())

    def _rank_of_P(self) -> int:
        ranks = []
        for name in s4.SEVERAL.get(self.measure or "", (self.measure or "",)):
            if name.startswith("dplr-"):
                diagonal(name.removeprefix("dplr-"), 2, generator=torch.Generator())
                ranks.append(self.rank or 1)
            else:
                ranks.append(len(nplr(name, 2, self.rank).P))
        return max(ranks)

    def layer_settings(self) -> dict[str, Any]:
        """Return the settings that this layer alone has, by name."""
        return {name: getattr(self, name) for name in LAYER_SETTINGS[self.layer]}

    @property
    def tokens(self) -> bool:
        """Whether the inputs are tokens."""
        return self.vocab_size is not None

    def parameter_count(self) -> int:
        """Return how many parameters the model has. No tensor is made."""
        d = self.d_model
        encoder = d * (self.vocab_size if self.vocab_size is not None else (self.d_input or 0) + 1)
        norm = 2 * d if self.norm == "layer" else d
        final = norm if self.prenorm and self.final_norm else 0
        decoder = (d + 1) * self.classes
        return encoder + self.n_layer * (self._mixer_count() + norm) + final + decoder

    def _mixer_count(self) -> int:
        return self._mamba_count() if self.layer == "mamba" else self._s4_count()

    def _mamba_count(self) -> int:
        d, n, k, expand = self.d_model, self.d_state or 0, self.d_conv or 0, self.expand or 0
        inner = expand * d
        rank = self.dt_rank if isinstance(self.dt_rank, int) else math.ceil(d / 16)
        branch = inner * (k + 1) + inner * (rank + 2 * n) + rank * inner + inner + inner * n + inner
        return 3 * d * inner + branch * (2 if self.bidirectional else 1)

    def _s4_count(self) -> int:
        d, m, c = self.d_model, (self.d_state or 0) // 2, self.channels_out or 1
        copies = d if self.n_ssm is None else self.n_ssm
        rank = self._rank_of_P() if self.layer == "s4" else 0
        outputs = 2 * c if self.bidirectional else c
        # A, B and P of every copy, dt, D, and C; complex numbers count as two.
        system = copies * m * (4 + 2 * rank) + d + c * d + outputs * d * m * 2
        return system + (c * d + 1) * d * (2 if self.glu else 1)
