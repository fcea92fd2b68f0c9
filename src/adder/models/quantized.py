"""A language model with its weights rounded to int8 or int4."""

import dataclasses

import torch
from torch import nn

from adder.errors import UsageError
from adder.layers import QuantizedEmbedding, QuantizedLinear
from adder.layers.linear import Linear
from adder.models.language_model import LanguageModel
from adder.ops.quantized_linear import quantize
from adder.ops.quantized_linear.weight import SCHEMES, Scheme

# What a module with rounded weights is made of.
_FLOAT: dict[type, tuple[type, ...]] = {
    QuantizedLinear: (Linear, nn.Linear),
    QuantizedEmbedding: (nn.Embedding,),
}


@torch.no_grad()
def quantize_model(model: LanguageModel, scheme: Scheme) -> LanguageModel:
    """Return a copy of a model with rounded weights, in evaluation mode; the model itself is not changed.

    int8: the projections of the blocks, the embedding and the head. int4: in_proj and out_proj of the blocks are
    int4, the others int8. Norms, convolutions, A, D and biases are float32. Such a model is read, not trained: its
    parameters take no gradient. Memory: the copy, and a few times one matrix on top of it.

    Raises:
        UsageError: the scheme is unknown, the model's weights are rounded already, or one is not finite; or a module
            or parameter is not the one that its config makes, as with adapters or a head that is tied no more.

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
    config, device = (
        dataclasses.replace(model.config, weights=scheme),
        next(model.parameters()).device,
    )
    result = LanguageModel.unfilled(config, device=device)
    _refuse_changed(model, result)
    given = dict(model.named_parameters(remove_duplicate=False))
    for name, place in result.named_modules():
        if not isinstance(place, QuantizedLinear | QuantizedEmbedding):
            continue
        if not (model.config.tie_embeddings and name == "lm_head"):
            try:
                place.hold(quantize(given[f"{name}.weight"], place.scheme))
            except ValueError as error:
                raise UsageError(f"quantize_model: {name}: {error}") from None
    result._tie()
    for name, parameter in result.named_parameters():
        if not bool(given[name].isfinite().all()):
            raise UsageError(f"quantize_model: {name} holds a NaN or an infinity")
        parameter.copy_(given[name])
    return result.eval()


def _refuse_changed(model: LanguageModel, result: LanguageModel) -> None:
    """Refuse a model that is not what its config makes: what was put in or around it would be lost in `result`."""
    known = dict(result.named_modules(remove_duplicate=False))
    for name, module in model.named_modules(remove_duplicate=False):
        place = known.get(name)
        if place is None:
            raise UsageError(
                f"quantize_model: {name} is a module that a LanguageModel does not have: merge adapters first"
            )
        kinds = _FLOAT.get(type(place), (type(place),))
        if type(module) not in kinds and module is not model:
            raise UsageError(
                f"quantize_model: {name} is a {type(module).__name__}, expected {kinds[0].__name__}: "
                "merge adapters first"
            )
    tied = model.lm_head.weight is model.backbone.embedding.weight
    if model.config.tie_embeddings and not tied:
        raise UsageError(
            "quantize_model: lm_head.weight is not backbone.embedding.weight, as the config's tie_embeddings says: "
            "tie it, or give a model with tie_embeddings=False"
        )
    given = {name: each.shape for name, each in model.named_parameters(remove_duplicate=False)}
    shapes = {name: each.shape for name, each in result.named_parameters()}
    for name, place in known.items():
        if isinstance(place, QuantizedLinear | QuantizedEmbedding):
            shapes[f"{name}.weight"] = torch.Size((place.rows, place.columns))
    for name in [*given, *shapes]:
        if given.get(name) != shapes.get(name):
            has, expected = (
                "nothing" if shape is None else tuple(shape)
                for shape in (given.get(name), shapes.get(name))
            )
            raise UsageError(f"quantize_model: {name} is {has}, expected {expected}")
