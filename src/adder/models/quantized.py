"""A language model with its weights rounded to int8 or int4."""

import dataclasses

import torch
from torch import nn

from adder.errors import UsageError
from adder.layers import QuantizedEmbedding, QuantizedLinear
from adder.models.language_model import LanguageModel
from adder.ops.quantized_linear import quantize
from adder.ops.quantized_linear.weight import SCHEMES, Scheme


@torch.no_grad()
def quantize_model(model: LanguageModel, scheme: Scheme) -> LanguageModel:
    """Return a copy of a model with rounded weights, in evaluation mode; the model itself is not changed.

    int8: the projections of the blocks, the embedding and the head. int4: in_proj and out_proj of the blocks are
    int4, the others int8. Norms, convolutions, A, D and biases are float32. Such a model is read, not trained: its
    parameters take no gradient. Memory: the copy, and a few times one matrix on top of it.

    Raises:
        UsageError: the scheme is unknown, the model's weights are rounded already, or one is not finite.

    Example:
        >>> from adder import LanguageModelConfig
        >>> model = LanguageModel(LanguageModelConfig(vocab_size=10, d_model=32, n_layer=2))
        >>> small = quantize_model(model, "int4")
        >>> small.config.weights, small(torch.tensor([[1, 2, 3]])).logits.shape
        ('int4', torch.Size([1, 3, 10]))
    """
    if scheme not in SCHEMES:
        raise UsageError(f"quantize_model: scheme is {scheme!r}, expected {' or '.join(SCHEMES)}")
    if model.config.weights != "float":
        raise UsageError(
            f"quantize_model: the model's weights are {model.config.weights} already: give the float model"
        )
    result = LanguageModel(dataclasses.replace(model.config, weights=scheme))
    result.to(next(model.parameters()).device)
    wanted = dict(result.named_modules())
    given = dict(model.named_parameters())
    for name, module in model.named_modules():
        place = wanted[name]
        if isinstance(place, QuantizedLinear | QuantizedEmbedding):
            assert isinstance(module, nn.Linear | nn.Embedding)
            if not (model.config.tie_embeddings and name == "lm_head"):
                try:
                    place.hold(quantize(module.weight, place.scheme))
                except ValueError as error:
                    raise UsageError(f"quantize_model: {name}: {error}") from None
    result._tie()
    for name, parameter in result.named_parameters():
        if not bool(given[name].isfinite().all()):
            raise UsageError(f"quantize_model: {name} holds a NaN or an infinity")
        parameter.copy_(given[name])
    return result.eval()
