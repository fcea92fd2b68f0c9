"""Mamba2: mamba_ssm's parameters and initialisation, and one call for every length."""

import doctest
import importlib
import math

import pytest
import torch
from torch.nn import functional as F

import adder
from adder.layers import Mamba2, parameter_groups
from adder.layers.state import flatten_state
from adder.ops.gated_norm.reference import gated_norm_reference
from adder.ops.short_convolution.reference import short_convolution_reference
from adder.ops.state_space_dual.reference import state_space_dual_reference

OPTIONS = {
    "as it comes": {},
    "groups": {"ngroups": 2, "D_has_hdim": True},
    "norm before gate": {"norm_before_gate": True, "ngroups": 4, "bias": True},
    "no norm": {"rmsnorm": False, "conv_bias": False},
    "limits": {"dt_limit": (0.01, 0.05)},
}


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS.keys())
def layer(request):
    torch.manual_seed(0)
    layer = Mamba2(8, d_state=5, d_conv=3, headdim=4, chunk_size=4, **request.param).double()
    with torch.no_grad():
        for each in layer.parameters():
            each += 0.1 * torch.randn_like(each)
    return layer


def run(layer, u, seq_idx=None):
    """Return the layer's output from the references of its operators, after mamba_ssm's Mamba2.forward."""
    inner, n, g = layer.out_proj.in_features, layer.d_state, layer.ngroups
    z, mixed, dt = F.linear(u, layer.in_proj.weight, layer.in_proj.bias).split(
        [inner, inner + 2 * g * n, inner // layer.headdim], -1
    )
    weight, bias = layer.conv1d.weight.squeeze(1), layer.conv1d.bias
    mixed, _ = short_convolution_reference(mixed, weight, bias, activation="silu", seq_idx=seq_idx)
    x, B, C = mixed.split([inner, g * n, g * n], -1)
    D = layer.D if layer.D.numel() == dt.shape[-1] else layer.D.view(-1, layer.headdim)
    y, _ = state_space_dual_reference(
        x.unflatten(-1, (-1, layer.headdim)),
        dt,
        -layer.A_log.exp(),
        B.unflatten(-1, (g, n)),
        C.unflatten(-1, (g, n)),
        D,
        dt_bias=layer.dt_bias,
        dt_softplus=True,
        dt_limit=layer.dt_limit,
        seq_idx=seq_idx,
    )
    y = y.flatten(2)
    if layer.norm is None:
        y = y * F.silu(z)
    else:
        y = gated_norm_reference(
            y,
            z,
            layer.norm.weight,
            eps=1e-5,
            group_size=inner // g,
            norm_before_gate=layer.norm.norm_before_gate,
        )
    return F.linear(y, layer.out_proj.weight, layer.out_proj.bias)


@pytest.mark.parametrize("packed", [False, True])
def test_is_the_papers_block(layer, packed):
    u = torch.randn(2, 11, 8, dtype=torch.float64)
    seq_idx = torch.tensor([[0] * 5 + [1] * 6, [0] * 11], dtype=torch.int32) if packed else None
    expected = run(layer, u, seq_idx)
    torch.testing.assert_close(layer(u, seq_idx=seq_idx)[0], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("cuts", [(1,), (5,), (1, 2, 3), tuple(range(1, 11))])
def test_chunk_by_chunk_equals_the_whole(layer, cuts):
    u = torch.randn(2, 11, 8, dtype=torch.float64)
    whole, last = layer(u, layer.initial_state(2))
    state, parts = layer.initial_state(2), []
    for piece in u.tensor_split(cuts, dim=1):
        y, state = layer(piece, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-12, atol=1e-12)
    for got, expected in zip(
        flatten_state(state).values(), flatten_state(last).values(), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_a_state_comes_back_exactly_when_one_was_given(layer):
    u = torch.randn(2, 4, 8, dtype=torch.float64)
    y, none = layer(u)
    again, state = layer(u, layer.initial_state(2))
    assert none is None
    assert torch.equal(y, again)
    before = {name: each.clone() for name, each in flatten_state(state).items()}
    layer(u, state)
    for name, each in flatten_state(state).items():
        assert torch.equal(each, before[name])
        assert each.shape == layer.initial_state(2)[name].shape


def test_gradients_flow_through_the_state(layer):
    u = torch.randn(1, 6, 8, dtype=torch.float64)
    whole, _ = layer(u, layer.initial_state(1))
    whole.sum().backward()
    expected = {name: each.grad.clone() for name, each in layer.named_parameters()}
    layer.zero_grad()
    first, state = layer(u[:, :3], layer.initial_state(1))
    second, _ = layer(u[:, 3:], state)
    (first.sum() + second.sum()).backward()
    for name, each in layer.named_parameters():
        torch.testing.assert_close(each.grad, expected[name], rtol=1e-10, atol=1e-12)


def test_packed_sequences_equal_separate_ones(layer):
    u = torch.randn(1, 9, 8, dtype=torch.float64)
    seq_idx = torch.tensor([[0, 0, 0, 1, 2, 2, 2, 2, 2]], dtype=torch.int32)
    packed, _ = layer(u, seq_idx=seq_idx)
    apart = torch.cat([layer(u[:, a:b])[0] for a, b in ((0, 3), (3, 4), (4, 9))], dim=1)
    torch.testing.assert_close(packed, apart, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_state_in_float32(dtype):
    torch.manual_seed(0)
    layer = Mamba2(8, d_state=5, headdim=4)
    u = torch.randn(2, 7, 8)
    expected, _ = layer(u)
    y, state = layer.to(dtype)(u.to(dtype), layer.to(dtype).initial_state(2))
    assert (y.dtype, state["conv"].dtype, state["ssm"].dtype) == (dtype, dtype, torch.float32)
    assert (y.float() - expected).abs().max() < 16 * torch.finfo(dtype).eps * expected.abs().max()


def test_autocast_computes_as_a_bfloat16_layer_does():
    torch.manual_seed(0)
    layer = Mamba2(8, d_state=5, headdim=4)
    u = torch.randn(2, 7, 8)
    expected, _ = layer(u)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer(u, layer.initial_state(2))
    assert state["conv"].dtype == torch.float32
    assert (y.float() - expected).abs().max() < 16 * 2**-7 * expected.abs().max()


def test_initialisation_is_mamba_ssms():
    """A uniform in [1, 16], dt's bias softplus^-1 of log-uniform [1e-3, 1e-1], D and the norm's weight 1."""
    torch.manual_seed(0)
    layer = Mamba2(256, headdim=2)
    heads = 256
    A, dt = layer.A_log.exp(), F.softplus(layer.dt_bias)
    assert 1 - 1e-5 <= A.min() < A.max() <= 16 + 1e-4
    # The mean of uniform draws has standard deviation width / sqrt(12 * draws); five of them.
    assert abs(A.mean() - 8.5) < 5 * 15 / math.sqrt(12 * heads)
    assert 1e-3 * (1 - 1e-4) <= dt.min() < dt.max() <= 1e-1 * (1 + 1e-4)
    uniform = (dt.log() - math.log(1e-3)) / (math.log(1e-1) - math.log(1e-3))
    assert abs(uniform.mean() - 0.5) < 5 / math.sqrt(12 * heads)
    assert torch.equal(layer.D, torch.ones(heads))
    assert torch.equal(layer.norm.weight, torch.ones(512))


def test_parameter_names_and_shapes_are_mamba_ssms():
    shapes = {name: tuple(each.shape) for name, each in Mamba2(768).named_parameters()}
    assert shapes == {
        "dt_bias": (24,),
        "A_log": (24,),
        "D": (24,),
        "in_proj.weight": (3352, 768),
        "conv1d.weight": (1792, 1, 4),
        "conv1d.bias": (1792,),
        "norm.weight": (1536,),
        "out_proj.weight": (768, 1536),
    }
    assert Mamba2(64, D_has_hdim=True).D.shape == (128,)
    assert "norm.weight" not in Mamba2(64, rmsnorm=False).state_dict()


def test_no_weight_decay_but_on_matrices():
    groups = parameter_groups(Mamba2(32, D_has_hdim=True), lr=1.0, weight_decay=0.1)
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    assert decayed == {"in_proj.weight", "conv1d.weight", "out_proj.weight"}


@pytest.mark.refuses
def test_a_state_of_another_layer_is_refused():
    layer = Mamba2(8, headdim=4)
    state = layer.initial_state(1)
    for wrong, held in ((state["ssm"], "a Tensor"), ({"conv": state["conv"]}, "conv")):
        with pytest.raises(adder.UsageError, match=f"Mamba2: the state holds {held}, expected"):
            layer(torch.ones(1, 2, 8), wrong)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 0}, "d_model 0 must be at least 1"),
        ({"d_state": 0}, "d_state 0"),
        ({"d_conv": 0}, "d_conv 0"),
        ({"expand": 0}, "expand 0"),
        ({"chunk_size": 0}, "chunk_size 0"),
        ({"headdim": 5}, "headdim 5 must divide the 16 inner"),
        ({"headdim": 4, "ngroups": 3}, "ngroups 3 the number of heads"),
        ({"dt_min": 0.2}, "dt_min, dt_max is 0.2, 0.1, expected 0 < least"),
        ({"A_init_range": (0.0, 16.0)}, "A_init_range is 0.0, 16.0"),
        ({"dt_limit": (1.0, 0.0)}, "dt_limit is 1.0, 0.0, expected 0 <= least"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(adder.UsageError, match=message):
        Mamba2(**{"d_model": 8, "headdim": 4, **options})


def test_example_runs():
    module = importlib.import_module("adder.layers.mamba2")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
