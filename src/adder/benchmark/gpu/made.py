"""Models of random weights, made on their device: nothing is drawn on the host."""

import math

import torch
from torch import nn

from adder.models import LanguageModel, LanguageModelConfig

STEP = 0.01  # what a token's step size is about


def make_model(
    config: LanguageModelConfig, dtype: torch.dtype, device: torch.device
) -> LanguageModel:
    """Return a model to read and write with."""
    return fill(LanguageModel.unfilled(config, dtype, device)).eval().requires_grad_(False)


@torch.no_grad()
def fill(model: LanguageModel) -> LanguageModel:
    """Give every parameter values of the usual size, so that times and numbers are those of a real model."""
    for name, each in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if last == "A_log":
            each.copy_(torch.arange(1.0, each.shape[-1] + 1, device=each.device).log())
        elif last == "D" or ("norm" in name and last == "weight"):
            nn.init.ones_(each)
        elif name.endswith("dt_proj.bias"):
            nn.init.constant_(each, math.log(math.expm1(STEP)))
        elif each.ndim < 2:
            nn.init.zeros_(each)
        else:
            nn.init.normal_(each, std=0.5 if "conv" in name else 0.02)
    return model


def transformer_of(config: LanguageModelConfig) -> LanguageModelConfig:
    """Return a Transformer of the same width and size: a block of it has as many parameters as two of Mamba."""
    heads = max(1, config.d_model // 64)
    return LanguageModelConfig(
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        n_layer=max(1, config.n_layer // 2),
        layer="transformer",
        n_heads=heads,
    )
