"""Tiny random models of every Mamba family of transformers, for the tests beside this file."""

import importlib
from typing import Any

import torch
from torch import nn

VOCABULARY = 37
_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2}
_ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 24}
_MAMBA = {"mamba_d_state": 4, "mamba_d_conv": 4, "mamba_expand": 2}
_MAMBA2 = {
    **_MAMBA,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 4,
}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}

# The name of the configuration and of the model, and sizes; with both kinds of layers where there are two. No experts:
# which one a token goes to may hang on the last bit.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", {**_SIZES, "state_size": 4}),
    "falcon_mamba": ("FalconMamba", {**_SIZES, "state_size": 4}),
    "jamba": (
        "Jamba",
        {**_SIZES, **_ATTENTION, **_MAMBA, "num_experts": 1, "num_experts_per_tok": 1}
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2}
        | {"mamba_dt_rank": 3},
    ),
    "zamba": (
        "Zamba",
        {**_SIZES, **_ATTENTION, **_MAMBA, "num_hidden_layers": 3, "n_mamba_heads": 2}
        | {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "mamba_dt_rank": 3}
        | {"attention_hidden_size": 32, "attention_head_dim": 16},
    ),
    "mamba2": (
        "Mamba2",
        {**_SIZES, "num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 4},
    ),
    "bamba": ("Bamba", {**_SIZES, **_ATTENTION, **_MAMBA2, "attn_layer_indices": [1]}),
    "zamba2": (
        "Zamba2",
        {**_SIZES, **_ATTENTION, "num_hidden_layers": 3, "mamba_d_state": 8, "mamba_ngroups": 2}
        | {"n_mamba_heads": 4, "mamba_headdim": 8, "chunk_size": 4, "num_mem_blocks": 1}
        | {"layers_block_type": ["mamba", "hybrid", "mamba"], "adapter_rank": 4},
    ),
    "nemotron_h": (
        "NemotronH",
        {**_SIZES, **_ATTENTION, "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2}
        | {"ssm_state_size": 8, "chunk_size": 4, "head_dim": 8}
        | {"layers_block_type": ["mamba", "attention"]},
    ),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        {**_SIZES, **_ATTENTION, **_MAMBA2, "layer_types": ["mamba", "attention"]}
        | {"shared_intermediate_size": 24, "num_local_experts": 0, "num_experts_per_tok": 0},
    ),
    "falcon_h1": (
        "FalconH1",
        {**_SIZES, **_ATTENTION, **_MAMBA2, "head_dim": 8, "mamba_d_ssm": 32},
    ),
}


def build(
    family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> nn.Module:
    """Return a causal language model of a family, of the same numbers for the same seed."""
    name, settings = MODELS[family]
    package = importlib.import_module(f"transformers.models.{family}")
    config = getattr(package, f"{name}Config")(**{**settings, **_TOKENS, **changes})
    torch.manual_seed(seed)
    model = getattr(package, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for (
            parameter
        ) in model.parameters():  # biases that are zero, and weights that are one, hide mistakes
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model.to(dtype).eval()


def ids(batch: int = 2, length: int = 11, seed: int = 1) -> torch.Tensor:
    """Return random tokens, none of them padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (batch, length), generator=generator)


def module_of(family: str) -> Any:
    """Return the modeling file of a family."""
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")
