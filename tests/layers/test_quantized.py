"""QuantizedLinear and QuantizedEmbedding: what a layer adds to the operator."""

import copy
import doctest
import importlib
from typing import Any

import pytest
import torch
from torch import nn

from adder import Mamba, UsageError
from adder.layers import QuantizedEmbedding, QuantizedLinear
from adder.layers.quantized import unbiased
from adder.ops import quantize, quantized_linear

SCHEMES = ["int8", "int4"]


def linear(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(40, 18, bias=bias)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_operator(scheme: Any, bias: bool, dtype: torch.dtype) -> None:
    given = linear(bias)
    layer = QuantizedLinear.of(given, scheme)
    x = torch.randn(2, 3, 40).to(dtype)
    weight = quantize(given.weight, scheme)
    own = given.bias.detach() if bias else None
    assert torch.equal(layer(x), quantized_linear(x, weight, own))
    product, rest = unbiased(layer, x)
    assert torch.equal(product, quantized_linear(x, weight))
    assert (rest is None) == (own is None)
    assert (layer.in_features, layer.out_features, layer.scheme) == (40, 18, scheme)
    assert torch.equal(layer.quantized.dequantize(), weight.dequantize())


def test_names_in_the_state_dict() -> None:
    layer = QuantizedLinear.of(linear(), "int4")
    types = {name: each.dtype for name, each in layer.state_dict().items()}
    assert types == {"weight": torch.uint8, "scales": torch.bfloat16, "bias": torch.float32}
    again = QuantizedLinear(40, 18, scheme="int4")
    again.load_state_dict(layer.state_dict())
    x = torch.randn(3, 40)
    assert torch.equal(again(x), layer(x))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_new_one_is_zeros(scheme: Any) -> None:
    assert torch.equal(QuantizedLinear(40, 18, scheme=scheme)(torch.ones(40)), torch.zeros(18))
    assert torch.equal(
        QuantizedEmbedding(5, 9, scheme=scheme)(torch.tensor([4])), torch.zeros(1, 9)
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_conversions_keep_the_codes_and_the_scales(scheme: Any) -> None:
    layer = QuantizedLinear.of(linear(), scheme)
    before = {name: each.clone() for name, each in layer.state_dict().items()}
    for convert in ("half", "double", "bfloat16", "float"):
        getattr(layer, convert)()
        for name in ("weight", "scales"):
            assert torch.equal(getattr(layer, name), before[name]), convert
            assert getattr(layer, name).dtype == before[name].dtype
    layer.to(torch.float64).type(torch.float32)
    assert torch.equal(layer.scales, before["scales"])
    assert layer.weight.dtype == torch.uint8
    assert layer.to("meta").weight.device.type == "meta"
    with pytest.raises(TypeError, match="quantized_linear: x is torch.float64"):
        QuantizedLinear.of(linear(), scheme).double()(torch.ones(40).double())


def test_a_copy_is_its_own() -> None:
    layer = QuantizedLinear.of(linear(), "int8")
    other = copy.deepcopy(layer)
    other.weight.fill_(128)
    assert not torch.equal(layer.weight, other.weight)


def test_the_embedding_gathers() -> None:
    torch.manual_seed(0)
    given = nn.Embedding(37, 40)
    layer = QuantizedEmbedding.of(given, "int8")
    ids = torch.tensor([[0, 36, 5], [16, 15, 5]])
    assert torch.equal(layer(ids), quantize(given.weight, "int8").dequantize()[ids])
    torch.testing.assert_close(layer(ids), given(ids).detach(), rtol=0, atol=0.02)


def test_training_is_refused_by_name() -> None:
    layer = QuantizedLinear.of(linear(), "int8")
    assert not any(each.requires_grad for each in layer.parameters())
    with pytest.raises(NotImplementedError, match="x requires a gradient.*train the float model"):
        layer(torch.ones(40, requires_grad=True))
    with pytest.raises(NotImplementedError, match="bias requires a gradient"):
        layer.requires_grad_()(torch.ones(40))


@pytest.mark.refuses
def test_replaced_buffers_never_reach_the_kernel() -> None:
    layer, x = QuantizedLinear.of(linear(), "int8"), torch.ones(2, 40)
    layer.load_state_dict({**layer.state_dict(), "scales": layer.scales.float()}, assign=True)
    with pytest.raises(TypeError, match="quantized_linear: scales is torch.float32"):
        layer(x)
    layer = QuantizedLinear.of(linear(), "int8")
    layer.weight = torch.zeros(1, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"quantized_linear: codes has shape \(1,\)"):
        layer(x)
    layer = QuantizedLinear.of(linear(), "int8")
    layer.scales = layer.scales.to("meta")
    with pytest.raises(ValueError, match="quantized_linear: scales is on meta"):
        layer(x)


def test_a_watched_projection_is_called_as_a_whole() -> None:
    layer, x = QuantizedLinear.of(linear(), "int8"), torch.ones(2, 40)
    seen: list[nn.Module] = []
    layer.register_forward_hook(lambda module, *_: seen.append(module))
    y, bias = unbiased(layer, x)
    assert seen == [layer]
    assert bias is None
    assert torch.equal(y, QuantizedLinear.of(linear(), "int8")(x))


@pytest.mark.refuses
def test_refusals() -> None:
    with pytest.raises(UsageError, match="QuantizedLinear: scheme is 'int2'"):
        QuantizedLinear(3, 4, scheme="int2")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="QuantizedEmbedding: rows 0"):
        QuantizedEmbedding(0, 4)
    layer = QuantizedLinear(40, 18)
    for rows, scheme in ((18, "int4"), (19, "int8")):
        with pytest.raises(
            UsageError, match=r"QuantizedLinear: the weight is .* expected \(18, 40\)"
        ):
            layer.hold(quantize(torch.ones(rows, 40), scheme))  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_block_with_rounded_projections_is_near_the_float_one(scheme: Any) -> None:
    torch.manual_seed(0)
    block = Mamba(64, bias=True).requires_grad_(False)
    u = torch.randn(2, 50, 64)
    expected, _ = block(u)
    for name in ("in_proj", "x_proj", "dt_proj", "out_proj"):
        setattr(block, name, QuantizedLinear.of(getattr(block, name), scheme))
    got, _ = block(u)
    assert 0 < (got - expected).norm() / expected.norm() < {"int8": 0.02, "int4": 0.2}[scheme]
    first, state = block(u[:, :20], block.initial_state(2))
    second, _ = block(u[:, 20:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), got, rtol=1e-5, atol=1e-5)


def test_examples_run() -> None:
    module = importlib.import_module("adder.layers.quantized")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
