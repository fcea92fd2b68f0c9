"""mamba_ssm's folders: their config.json and what it means for a LanguageModel. Names of tensors are ours."""

import dataclasses
from typing import Any

from adder.errors import UsageError
from adder.models.config import LanguageModelConfig
from adder.models.formats.keys import Keys, as_limit

# Words of ssm_cfg that a LanguageModelConfig has as well.
_SHARED = ("d_state", "d_conv", "expand", "dt_min", "dt_max", "dt_init_floor", "bias", "conv_bias")
_OF_LAYER = {
    "Mamba1": ("dt_rank",),
    "Mamba2": ("headdim", "ngroups", "chunk_size", "D_has_hdim", "rmsnorm", "norm_before_gate"),
}
# Of how weights are drawn, and of which code runs.
_NO_NUMBERS = ("dt_init", "dt_scale", "conv_init", "use_fast_path", "use_mem_eff_path")
_EPSILON = 1e-5  # written into its code


def config_from(values: dict[str, Any]) -> LanguageModelConfig:
    """Return the sizes that a config.json of mamba_ssm asks for.

    Raises:
        UsageError: a value is of the wrong kind, asks for what a LanguageModel has not, or a key is unknown.
    """
    keys = Keys(values)
    defaults = {"tie_embeddings": True, "residual_in_fp32": True, "pad_vocab_size_multiple": 8}
    fields = {name: keys.take(name, default) for name, default in defaults.items()}
    for name in ("d_model", "n_layer", "vocab_size"):
        if (value := keys.take(name, None)) is None:
            raise UsageError(f"{name} is missing")
        fields[name] = value
    keys.expect("rms_norm", (True,), True)
    keys.expect("d_intermediate", (0,), 0)
    keys.ignore("fused_add_norm")
    for name, empty in (("attn_layer_idx", []), ("attn_cfg", {})):
        if (value := keys.take(name, empty)) != empty:
            raise UsageError(f"{name} is {value!r}: a LanguageModel has no attention layers")
    fields |= _layer(keys.take("ssm_cfg", {}))
    keys.finish()
    return LanguageModelConfig(**fields, norm_epsilon=_EPSILON)


def _layer(values: Any) -> dict[str, Any]:
    keys = Keys(values, "ssm_cfg")
    layer = keys.take("layer", "Mamba1")
    if layer not in _OF_LAYER:
        raise UsageError(f"ssm_cfg.layer is {layer!r}, expected {' or '.join(_OF_LAYER)}")
    fields: dict[str, Any] = {"layer": "mamba2" if layer == "Mamba2" else "mamba"}
    defaults = {field.name: field.default for field in dataclasses.fields(LanguageModelConfig)}
    for name in (*_SHARED, *_OF_LAYER[layer]):
        fields[name] = keys.take(name, defaults[name])
    if layer == "Mamba2":
        fields["dt_limit"] = as_limit(keys.take("dt_limit", None))
        if (drawn := keys.take("A_init_range", None)) is not None:
            fields["A_init_range"] = tuple(drawn) if isinstance(drawn, list) else drawn
        keys.expect("d_ssm", (None,), None)
        keys.ignore("process_group", "sequence_parallel")
    keys.ignore(*_NO_NUMBERS)
    keys.finish()
    return fields


def consolidated_config_from(values: dict[str, Any]) -> LanguageModelConfig:
    """Return the sizes in the params.json of Mamba-Codestral's own release: a Mamba-2 of mamba_ssm, in other words.

    Raises:
        UsageError: as `config_from`.
    """
    keys = Keys(values)
    renamed = {"dim": "d_model", "n_layers": "n_layer", "vocab_size": "vocab_size"}
    fields = {}
    for theirs, ours in renamed.items():
        if (value := keys.take(theirs, None)) is None:
            raise UsageError(f"{theirs} is missing")
        fields[ours] = value
    keys.expect("rms_norm", (True,), True)
    keys.expect("model_type", ("mamba", "mamba2"), "mamba")
    layer = {"layer": "Mamba2", "ngroups": keys.take("n_groups", 8)}
    kept = ("tie_embeddings", "residual_in_fp32", "pad_vocab_size_multiple")
    fields |= {
        name: keys.take(name, default) for name, default in zip(kept, (False, True, 1), strict=True)
    }
    keys.ignore("fused_add_norm")
    keys.finish()
    return config_from({**fields, "ssm_cfg": layer})


def values_of(config: LanguageModelConfig) -> dict[str, Any]:
    """Return the config.json from which mamba_ssm makes the same model.

    Raises:
        UsageError: mamba_ssm has no such model; the message names what it lacks.
    """
    if config.layer not in ("mamba", "mamba2"):
        raise UsageError(f'mamba_ssm has no {config.layer} blocks: save it as format="adder"')
    lacking = []
    if config.weights != "float":
        lacking.append(f"weights {config.weights}")
    if config.mixer_norm_epsilon is not None:
        lacking.append("mixer_norm_epsilon")
    if config.norm_epsilon != _EPSILON:
        lacking.append(f"norm_epsilon {config.norm_epsilon} (it is {_EPSILON} there)")
    if config.d_inner != config.expand * config.d_model:
        lacking.append(f"intermediate_size {config.intermediate_size}")
    if lacking:
        raise UsageError(
            f"mamba_ssm has no {', no '.join(lacking)}: save it in another format, "
            'format="huggingface" or "adder"'
        )
    layer = "Mamba2" if config.layer == "mamba2" else "Mamba1"
    names = (*_SHARED, *_OF_LAYER[layer])
    ssm: dict[str, Any] = {"layer": layer, **{name: getattr(config, name) for name in names}}
    if layer == "Mamba2":
        # json writes an infinity as Infinity, as mamba_ssm does.
        ssm |= {"dt_limit": list(config.dt_limit), "A_init_range": list(config.A_init_range)}
    return {
        "d_model": config.d_model,
        "d_intermediate": 0,
        "n_layer": config.n_layer,
        "vocab_size": config.vocab_size,
        "ssm_cfg": ssm,
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": config.residual_in_fp32,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": config.pad_vocab_size_multiple,
        "tie_embeddings": config.tie_embeddings,
    }
