"""A sequence classifier over S4, S4D or Mamba: tokens, pixels or samples in, classes out."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from adder.errors import UsageError
from adder.layers import S4, S4D, Mamba, RMSNorm, S4Block, State
from adder.layers.dropout import Dropout
from adder.layers.linear_ssm_options import Options, is_positive
from adder.models.checkpoint import Pretrained
from adder.models.classifier_config import SequenceClassifierConfig


class SequenceClassifierOutput(NamedTuple):
    """The mean loss where labels were given, logits (b classes), the state where one was given."""

    loss: Float[Tensor, ""] | None
    logits: Float[Tensor, "b classes"]
    state: State | None


def _mamba(config: SequenceClassifierConfig) -> nn.Module:
    return Mamba(
        config.d_model,
        bidirectional=config.bidirectional,
        dt_min=config.dt_min,
        dt_max=config.dt_max,
        **config.layer_settings(),
    )


def _s4(config: SequenceClassifierConfig) -> nn.Module:
    sizes = (config.d_model, config.d_state or 0)
    measure = config.measure or "legs"
    return _s4_block(config, S4(*sizes, measure=measure, rank=config.rank, **_options(config)))


def _s4d(config: SequenceClassifierConfig) -> nn.Module:
    sizes = (config.d_model, config.d_state or 0)
    start = (config.init or "legs", config.method or "zoh")
    return _s4_block(config, S4D(*sizes, init=start[0], method=start[1], **_options(config)))


def _options(config: SequenceClassifierConfig) -> Options:
    return {
        "channels_out": config.channels_out or 1,
        "bidirectional": config.bidirectional,
        "n_ssm": config.n_ssm,
        "dt_min": config.dt_min,
        "dt_max": config.dt_max,
        "lr": config.ssm_learning_rate,
        "l_max": config.l_max,
        "bandlimit": config.bandlimit,
    }


def _s4_block(config: SequenceClassifierConfig, layer: S4 | S4D) -> nn.Module:
    return S4Block(
        layer,
        activation=config.activation or "gelu",
        dropout=config.dropout,
        tie_dropout=config.tie_dropout,
        glu=bool(config.glu),
    )


MIXERS = {"mamba": _mamba, "s4": _s4, "s4d": _s4d}


def _norm(config: SequenceClassifierConfig) -> nn.Module:
    kind = nn.LayerNorm if config.norm == "layer" else RMSNorm
    return kind(config.d_model, config.norm_epsilon)


class ClassifierBlock(nn.Module):
    """x + dropout(mixer(norm(x))), or norm(x + dropout(mixer(x)))."""

    def __init__(self, config: SequenceClassifierConfig):
        super().__init__()
        self.prenorm = config.prenorm
        self.has_rate = config.layer != "mamba"
        self.mixer = MIXERS[config.layer](config)
        self.norm = _norm(config)
        self.dropout = Dropout(config.dropout, config.tie_dropout)

    def initial_state(self, batch_size: int) -> State:
        """Return the state of the mixer before the first step."""
        state: State = self.mixer.initial_state(batch_size)  # type: ignore[operator]
        return state

    def forward(
        self, x: Tensor, padding: Tensor | None, state: State | None, rate: float
    ) -> tuple[Tensor, State | None]:
        """Run the block. Where `padding` (b l 1) holds, the mixer reads zeros."""
        u = self.norm(x) if self.prenorm else x
        if padding is not None:
            u = u.masked_fill(padding, 0.0)
        y, state = self.mixer(u, state, rate=rate) if self.has_rate else self.mixer(u, state)
        x = x + self.dropout(y)
        return x if self.prenorm else self.norm(x), state


class SequenceClassifier(Pretrained):
    """Blocks of state space layers between an encoder and a decoder that reads the mean or the last step.

        out = model(inputs, lengths=None, labels=None, state=None, rate=1.0)

    Trained as a convolution, it can be run as a recurrence: with a state (`model.initial_state(b)`) a
    sequence may come in any chunks, one step included, and `out.logits` after each are those of all that
    was read so far. The state is a tuple: that of each layer, and with mean pooling behind them
    {"sum": (b, d_model), "count": (b,)} of all steps so far.

    Example:
        >>> config = SequenceClassifierConfig(classes=3, d_input=1, layer="mamba", d_model=8, n_layer=2)
        >>> model = SequenceClassifier(config)
        >>> x = torch.randn(2, 5, 1)
        >>> whole = model(x).logits
        >>> first = model(x[:, :3], state=model.initial_state(2))
        >>> second = model(x[:, 3:], state=first.state)
        >>> torch.allclose(second.logits, whole, atol=1e-5)
        True
    """

    config_class = SequenceClassifierConfig
    config: SequenceClassifierConfig

    def __init__(self, config: SequenceClassifierConfig):
        super().__init__()
        self.config = config
        self.encoder: nn.Embedding | nn.Linear
        self.input_mean: Tensor
        self.input_std: Tensor
        if config.vocab_size is not None:
            self.encoder = nn.Embedding(config.vocab_size, config.d_model)
        else:
            width = config.d_input or 1
            self.encoder = nn.Linear(width, config.d_model)
            # The config holds them: a model that is saved has them without these buffers.
            mean, std = config.input_mean or (0.0,) * width, config.input_std or (1.0,) * width
            self.register_buffer("input_mean", torch.tensor(mean), persistent=False)
            self.register_buffer("input_std", torch.tensor(std), persistent=False)
        self.layers = nn.ModuleList(ClassifierBlock(config) for _ in range(config.n_layer))
        self.norm_f = _norm(config) if config.prenorm and config.final_norm else None
        self.decoder = nn.Linear(config.d_model, config.classes)

    def blocks(self) -> Iterator[ClassifierBlock]:
        """Yield the blocks; an nn.ModuleList only knows them as modules."""
        for layer in self.layers:
            assert isinstance(layer, ClassifierBlock)
            yield layer

    def initial_state(self, batch_size: int) -> State:
        """Return the state before the first step. A bidirectional model has none and refuses."""
        if self.config.bidirectional:
            raise UsageError(
                "SequenceClassifier: a bidirectional model reads its whole input at once and has no state"
            )
        layers = tuple(block.initial_state(batch_size) for block in self.blocks())
        if self.config.pooling == "last":
            return layers
        weight = self.decoder.weight
        # A sum of float32 over a million steps would lose what the model may not: it is kept in float64.
        dtype = weight.dtype if weight.device.type == "mps" else torch.float64
        pool: State = {
            "sum": weight.new_zeros(batch_size, self.config.d_model, dtype=dtype),
            "count": torch.zeros(batch_size, dtype=torch.int64, device=weight.device),
        }
        return (*layers, pool)

    def forward(
        self,
        inputs: Int[Tensor, "b l"] | Float[Tensor, "b l d_input"],
        lengths: Int[Tensor, " b"] | None = None,
        labels: Int[Tensor, " b"] | None = None,
        state: State | None = None,
        rate: float = 1.0,
    ) -> SequenceClassifierOutput:
        """Return the logits, and the mean cross-entropy where `labels` are given.

        Args:
            inputs: tokens (b l), or real values (b l d_input), which are scaled here by `input_mean` and
                `input_std` of the config.
            lengths: how many steps of each row are real; the padding after them is inert. Not with a state.
            labels: a class for each row.
            state: what an earlier call returned, or `initial_state`.
            rate: how many steps of the training data pass in one step of these: the training's sampling
                rate over that of the inputs. Mamba has no rate but 1.

        Raises:
            UsageError: what cannot be served, by name.
        """
        self._check(inputs, lengths, labels, rate)
        padding = None
        if lengths is not None:
            steps = torch.arange(inputs.shape[1], device=inputs.device)
            padding = steps >= lengths[:, None]
        x = self._encode(inputs, padding)
        before = None if state is None else self._parts(state, lengths)
        masked = padding[..., None] if padding is not None and self.config.bidirectional else None
        after: list[Any] = []
        for number, block in enumerate(self.blocks()):
            x, state = block(x, masked, before[number] if before else None, rate)
            after.append(state)
        if self.norm_f is not None:
            x = self.norm_f(x)
        if before and self.config.pooling == "mean":
            pooled, state = self._pool_with_state(x, before[-1])
            after.append(state)
        else:
            pooled = self._pool(x, lengths, padding)
        logits = self.decoder(pooled.to(self.decoder.weight.dtype))
        loss = None if labels is None else F.cross_entropy(_at_least_float(logits), labels.long())
        return SequenceClassifierOutput(loss, logits, tuple(after) if before else None)

    def _encode(self, inputs: Tensor, padding: Tensor | None) -> Tensor:
        if isinstance(self.encoder, nn.Embedding):
            tokens = inputs if padding is None else inputs.masked_fill(padding, 0)
            _check_range("inputs", tokens, 0, self.encoder.num_embeddings - 1)
            return _at_least_float(self.encoder(tokens))
        values = inputs.to(self.decoder.weight.dtype)
        values = (values - self.input_mean) / self.input_std
        if padding is not None:  # not multiplied: padding may hold anything, NaN included
            values = values.masked_fill(padding[..., None], 0.0)
        return _at_least_float(self.encoder(values))

    def _pool(self, x: Tensor, lengths: Tensor | None, padding: Tensor | None) -> Tensor:
        if lengths is None or padding is None:
            return x.mean(1) if self.config.pooling == "mean" else x[:, -1]
        if self.config.pooling == "last":
            return x[torch.arange(len(x), device=x.device), lengths.long() - 1]
        return x.masked_fill(padding[..., None], 0.0).sum(1) / lengths[:, None].to(x.dtype)

    @staticmethod
    def _pool_with_state(x: Tensor, state: State) -> tuple[Tensor, State]:
        assert isinstance(state, dict)
        before, count = state["sum"], state["count"]
        assert isinstance(before, Tensor)
        assert isinstance(count, Tensor)
        total, seen = before + x.sum(1, dtype=before.dtype), count + x.shape[1]
        return total / seen[:, None], {"sum": total, "count": seen}

    def _check(
        self,
        inputs: Tensor,
        lengths: Tensor | None,
        labels: Tensor | None,
        rate: float,
    ) -> None:
        self._check_inputs(inputs)
        if not is_positive(rate):
            raise UsageError(f"SequenceClassifier: rate is {rate!r}, expected a positive number")
        if rate != 1.0 and self.config.layer == "mamba":
            raise UsageError(
                f"SequenceClassifier: rate is {rate}, and a Mamba layer has no sampling rate: "
                "its step sizes are functions of the input"
            )
        rows = len(inputs)
        for name, given, low, high in (
            ("lengths", lengths, 1, inputs.shape[1]),
            ("labels", labels, 0, self.config.classes - 1),
        ):
            if given is None:
                continue
            if not isinstance(given, Tensor):
                raise UsageError(
                    f"SequenceClassifier: {name} is a {type(given).__name__}, expected a tensor"
                )
            if given.shape != (rows,) or given.is_floating_point() or given.dtype == torch.bool:
                raise UsageError(
                    f"SequenceClassifier: {name} has shape {tuple(given.shape)} of {given.dtype}, "
                    f"expected ({rows},) of whole numbers"
                )
            _check_range(name, given, low, high)
        if lengths is not None and self.config.method == "dss":
            raise UsageError(
                "SequenceClassifier: lengths with method 'dss' are not served: its kernel is normalised over "
                "the padding too; give rows of one length"
            )
        if lengths is not None and self.config.bidirectional and self.config.layer == "mamba":
            raise UsageError(
                "SequenceClassifier: lengths cannot be honoured by a bidirectional Mamba: its convolution "
                "would see the padding; give rows of one length"
            )

    def _check_inputs(self, inputs: Tensor) -> None:
        if not isinstance(inputs, Tensor):
            raise UsageError(
                f"SequenceClassifier: inputs is a {type(inputs).__name__}, expected a tensor"
            )
        axes, last = ("(batch, length)", ()) if self.config.tokens else ("", (self.config.d_input,))
        shape = tuple(inputs.shape)
        if inputs.ndim != 2 + len(last) or 0 in shape or shape[2:] != last:
            expected = axes or f"(batch, length, {self.config.d_input})"
            raise UsageError(
                f"SequenceClassifier: inputs has shape {shape}, expected {expected}, all at least 1"
            )
        whole = not (inputs.is_floating_point() or inputs.is_complex())
        if whole != self.config.tokens or inputs.is_complex():
            expected = "whole numbers, tokens" if self.config.tokens else "real values"
            raise UsageError(f"SequenceClassifier: inputs is {inputs.dtype}, expected {expected}")

    def _parts(self, state: State, lengths: Tensor | None) -> tuple[State, ...]:
        """The state of each layer, and of the pooling where it has one."""
        if self.config.bidirectional:
            raise UsageError(
                "SequenceClassifier: a bidirectional model reads its whole input at once and takes no state"
            )
        if lengths is not None:
            raise UsageError(
                "SequenceClassifier: lengths and a state exclude each other: the state would hold the padding"
            )
        pools = self.config.pooling == "mean"
        if isinstance(state, tuple) and len(state) == self.config.n_layer + pools:
            last = state[-1]
            if not pools or (isinstance(last, dict) and last.keys() == {"sum", "count"}):
                return state
        raise UsageError(
            "SequenceClassifier: state is not one of this model, which has "
            f"{self.config.n_layer} layers and {self.config.pooling} pooling; see initial_state"
        )


def _at_least_float(x: Tensor) -> Tensor:
    """The residuals and the loss: float32 also under autocast, float64 where the model is."""
    return x if x.dtype == torch.float64 else x.float()


def _check_range(name: str, values: Any, low: int, high: int) -> None:
    if torch.compiler.is_compiling() or values.device.type != "cpu":
        return  # elsewhere the look would cost a synchronisation
    least, most = (int(each) for each in torch.aminmax(values))
    if least < low or most > high:
        raise UsageError(
            f"SequenceClassifier: {name} holds {least if least < low else most}, expected {low} to {high}"
        )
