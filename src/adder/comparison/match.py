"""Models of different blocks with about as many parameters as a Mamba."""

from dataclasses import dataclass, replace

from adder.errors import UsageError
from adder.models.config import LAYERS, LanguageModelConfig, Layer

DEFAULT_LAYERS: tuple[Layer, ...] = ("mamba", "mamba2", "s4", "s4d", "transformer", "lstm", "gru")
_HEAD_WIDTH = 16


@dataclass(frozen=True)
class Match:
    """A config, its parameters, and the relative difference (p - p_mamba) / p_mamba."""

    config: LanguageModelConfig
    parameters: int
    difference: float


def match(layer: str, *, vocab_size: int, d_model: int = 64, n_layer: int = 2) -> Match:
    """Return the model of `layer` blocks, n_layer deep, nearest in parameters to the Mamba of these sizes.

    d_model is searched in multiples of 8; for a Transformer, LSTM or GRU then the channels inside a block, and for S4
    and S4D the size of the state, since a step of d_model alone is too coarse for a small model.

    Raises:
        UsageError: there is no such kind of block, or d_model is no multiple of 8.
    """
    if layer not in LAYERS:
        raise UsageError(f"model {layer}: choose {', '.join(LAYERS[:-1])} or {LAYERS[-1]}")
    if d_model < 8 or d_model % 8:
        raise UsageError(f"d_model is {d_model}, expected a multiple of 8")
    mamba = LanguageModelConfig(vocab_size=vocab_size, d_model=d_model, n_layer=n_layer)
    wanted = mamba.parameter_count()
    found = mamba
    if layer != "mamba":
        sizes = range(8, 4 * d_model + 8, 8)
        found = _nearest([_config(layer, size, mamba) for size in sizes], wanted)
        found = _nearest(_finer(found), wanted)
    parameters = found.parameter_count()
    return Match(found, parameters, parameters / wanted - 1)


def _nearest(configs: list[LanguageModelConfig], wanted: int) -> LanguageModelConfig:
    return min(configs, key=lambda each: abs(each.parameter_count() - wanted))


def _config(layer: str, d_model: int, mamba: LanguageModelConfig) -> LanguageModelConfig:
    sizes = {"vocab_size": mamba.vocab_size, "n_layer": mamba.n_layer, "d_model": d_model}
    if layer == "transformer":
        heads = [h for h in range(1, d_model // _HEAD_WIDTH + 1) if d_model % (2 * h) == 0]
        sizes["n_heads"] = max(heads, default=1)
    if layer == "mamba2" and 2 * d_model % 64:
        sizes["headdim"] = _HEAD_WIDTH
    return LanguageModelConfig(layer=layer, **sizes)  # type: ignore[arg-type]


def _finer(config: LanguageModelConfig) -> list[LanguageModelConfig]:
    """The config, and those with a little more or less inside its blocks."""
    if config.layer in ("transformer", "lstm", "gru"):
        inner = config.d_inner
        sizes = range(max(8, inner // 16 * 8), inner * 3 // 2 + 1, 8)
        return [config, *(replace(config, intermediate_size=size) for size in sizes)]
    if config.layer in ("s4", "s4d"):
        return [replace(config, d_state=size) for size in range(48, 82, 2)]
    if config.layer == "mamba2":
        return [replace(config, d_state=size) for size in range(64, 193, 8)]
    return [config]
