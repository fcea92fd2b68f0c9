"""Hugging Face's folders of Mamba, FalconMamba and Mamba-2: their config.json and what it means for a LanguageModel."""

import dataclasses
from typing import Any

from adder.errors import UsageError
from adder.models.config import LanguageModelConfig
from adder.models.formats.keys import GENERIC, Keys, as_limit

_Table = dict[str, tuple[str, Any]]

# Hugging Face's word: ours, and its value where the config has none.
_COMMON: _Table = {
    "vocab_size": ("vocab_size", 50280),
    "hidden_size": ("d_model", 768),
    "num_hidden_layers": ("n_layer", 32),
    "state_size": ("d_state", 16),
    "conv_kernel": ("d_conv", 4),
    "expand": ("expand", 2),
    "use_bias": ("bias", False),
    "use_conv_bias": ("conv_bias", True),
    "layer_norm_epsilon": ("norm_epsilon", 1e-5),
    "residual_in_fp32": ("residual_in_fp32", True),
    "tie_word_embeddings": ("tie_embeddings", True),
    "initializer_range": ("initializer_range", 0.1),
    "time_step_min": ("dt_min", 1e-3),
    "time_step_max": ("dt_max", 1e-1),
    "time_step_floor": ("dt_init_floor", 1e-4),
}
_MAMBA: _Table = {**_COMMON, "time_step_rank": ("dt_rank", "auto")}
_FALCON: _Table = {**_MAMBA, "mixer_rms_eps": ("mixer_norm_epsilon", 1e-6)}
_MAMBA2: _Table = {
    **_COMMON,
    "vocab_size": ("vocab_size", 32768),
    "hidden_size": ("d_model", 4096),
    "num_hidden_layers": ("n_layer", 64),
    "state_size": ("d_state", 128),
    "tie_word_embeddings": ("tie_embeddings", False),
    "head_dim": ("headdim", 64),
    "n_groups": ("ngroups", 8),
    "chunk_size": ("chunk_size", 256),
}
_ARCHITECTURES = {"mamba": _MAMBA, "falcon_mamba": _FALCON, "mamba2": _MAMBA2}
_CLASSES = {
    "mamba": "MambaForCausalLM",
    "falcon_mamba": "FalconMambaForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
}
# Of how weights are drawn, and of which code runs: no number of a trained model depends on them.
_NO_NUMBERS = (
    "time_step_init_scheme",
    "time_step_scale",
    "rescale_prenorm_residual",
    "A_initializer_range",
    "use_mambapy",
    "use_falcon_mambapy",
    "use_associative_scan",
    "use_mamba_kernels",
    "pad_vocab_size_multiple",
    "fused_add_norm",
)


def config_from(values: dict[str, Any]) -> LanguageModelConfig:
    """Return the sizes that a config.json of Hugging Face asks for.

    Raises:
        UsageError: the model is none that adder runs, a value is of the wrong kind, two disagree, or a key is unknown.
    """
    kind = values.get("model_type")
    if kind not in _ARCHITECTURES:
        raise UsageError(
            f"model_type is {kind!r}: adder.LanguageModel reads {', '.join(_ARCHITECTURES)}; for the hybrid models "
            "of transformers see adder.integrations.transformers"
        )
    keys = Keys(values)
    table = _ARCHITECTURES[kind]
    for theirs in table:
        if values.get(theirs, 0) is None:
            raise UsageError(f"{theirs} is null, expected a value")
    fields = {ours: keys.take(theirs, default) for theirs, (ours, default) in table.items()}
    fields |= {"intermediate_size": keys.take("intermediate_size", None)}
    if kind == "mamba2":
        fields |= {"layer": "mamba2", "dt_limit": as_limit(keys.take("time_step_limit", None))}
    config = LanguageModelConfig(**fields, pad_vocab_size_multiple=1)
    wide = config.expand * config.d_model
    if config.intermediate_size == wide:
        config = dataclasses.replace(config, intermediate_size=None)
    if kind == "mamba2":
        # Ignored by transformers: its Mamba-2 has no step size of low rank, and always gates before it normalises.
        keys.ignore("time_step_rank", "norm_before_gate")
        if config.intermediate_size is not None:
            raise UsageError(
                f"intermediate_size is {config.d_inner}, expected expand * hidden_size = {wide}: mamba2 has no other"
            )
        if (heads := keys.take("num_heads", 128)) != config.heads:
            raise UsageError(
                f"num_heads * head_dim is {heads} * {config.headdim}, expected expand * hidden_size = "
                f"{config.expand} * {config.d_model}"
            )
    _expect_the_same(keys, config)
    keys.expect("hidden_act", ("silu", "swish"), "silu")
    keys.expect("rms_norm", (True,), True)
    if said := keys.take("ssm_cfg", None):
        raise UsageError(f"ssm_cfg is {said!r} beside model_type {kind!r}: expected it empty")
    layers = keys.take("layer_types", None) or ()
    for each in layers if isinstance(layers, list | tuple) else (layers,):
        if each != "linear_attention":
            raise UsageError(f"layer_types holds {each!r}, expected linear_attention alone")
    keys.ignore(*GENERIC, *_NO_NUMBERS)
    keys.finish()
    return config


def _expect_the_same(keys: Keys, config: LanguageModelConfig) -> None:
    """Take what published configs carry over from mamba_ssm, which must say what Hugging Face's own words say."""
    for word, (own, value) in {
        "d_model": ("hidden_size", config.d_model),
        "n_layer": ("num_hidden_layers", config.n_layer),
        "d_inner": ("intermediate_size", config.d_inner),
    }.items():
        said = keys.take(word, value)
        if said != value:
            raise UsageError(f"{word} is {said!r}, and {own} is {value!r}")


def values_of(config: LanguageModelConfig) -> dict[str, Any]:
    """Return the config.json from which transformers makes the same model.

    Raises:
        UsageError: transformers has no such model; the message names what it lacks.
    """
    kind = config.layer
    if kind == "mamba" and config.mixer_norm_epsilon is not None:
        kind = "falcon_mamba"  # type: ignore[assignment]
    if kind not in _ARCHITECTURES:
        raise UsageError(
            f'there is no published format of {kind} blocks: save it as format="adder"'
        )
    lacking = []
    if config.weights != "float":
        lacking.append(f"weights {config.weights}")
    if kind == "mamba2":
        lacking += [name for name in ("D_has_hdim", "norm_before_gate") if getattr(config, name)]
        lacking += [] if config.rmsnorm else ["rmsnorm False"]
        if config.d_inner != config.expand * config.d_model:
            lacking.append(f"intermediate_size {config.intermediate_size}")
    if lacking:
        raise UsageError(
            f"transformers' {kind} has no {', no '.join(lacking)}: save it in another format, "
            'format="mamba_ssm" or "adder"'
        )
    values: dict[str, Any] = {"architectures": [_CLASSES[kind]], "model_type": kind}
    for theirs, (ours, _) in _ARCHITECTURES[kind].items():
        values[theirs] = getattr(config, ours)
    values |= {"hidden_act": "silu", "use_cache": True, "dtype": "float32"}
    if kind == "mamba2":
        # json writes an infinity as Infinity, which every version of transformers reads.
        values |= {"num_heads": config.heads, "time_step_limit": list(config.dt_limit)}
    else:
        values |= {"time_step_rank": config.rank, "intermediate_size": config.d_inner}
    return values


def their_name(name: str) -> str:
    """Return Hugging Face's name of a tensor: the embedding is the one that differs."""
    return name.replace("backbone.embedding.", "backbone.embeddings.")
