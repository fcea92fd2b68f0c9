"""mamba_ssm's modules: the originals' arguments, state dicts and caches around adder's layers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adder import layers
from adder.errors import UsageError
from adder.integrations.mamba_ssm import InferenceParams, Mamba, Mamba2, RMSNormGated, rmsnorm_fn

SMALL = {Mamba: {"d_state": 3}, Mamba2: {"d_state": 4, "headdim": 4, "ngroups": 2}}
# The originals' own, for d_model 16.
NAMES = {
    Mamba: {
        "A_log": (32, 3),
        "D": (32,),
        "in_proj.weight": (64, 16),
        "conv1d.weight": (32, 1, 4),
        "conv1d.bias": (32,),
        "x_proj.weight": (7, 32),
        "dt_proj.weight": (32, 1),
        "dt_proj.bias": (32,),
        "out_proj.weight": (16, 32),
    },
    Mamba2: {
        "dt_bias": (8,),
        "A_log": (8,),
        "D": (8,),
        "in_proj.weight": (88, 16),
        "conv1d.weight": (48, 1, 4),
        "conv1d.bias": (48,),
        "norm.weight": (32,),
        "out_proj.weight": (16, 32),
    },
}
BOTH = pytest.mark.parametrize("cls", [Mamba, Mamba2])


def build(cls: Any, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return cls(16, layer_idx=3, **(SMALL[cls] | changes)).double()


def tokens(length: int = 9) -> Tensor:
    return torch.randn(2, length, 16, generator=torch.Generator().manual_seed(1)).double()


@BOTH
def test_state_dicts_load_both_ways(cls: Any) -> None:
    theirs = build(cls)
    ours = getattr(layers, cls.__name__)(16, **SMALL[cls]).double()
    assert {name: tuple(each.shape) for name, each in theirs.state_dict().items()} == NAMES[cls]
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(theirs(tokens()), ours(tokens())[0])
    with torch.no_grad():
        ours.D.mul_(2)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(theirs(tokens()), ours(tokens())[0])


@BOTH
def test_reading_in_parts_is_reading_at_once(cls: Any) -> None:
    """A prompt, a second one, and steps; then another text with the same parameters."""
    layer, u = build(cls), tokens()
    whole = layer(u)
    params = InferenceParams(max_seqlen=9, max_batch_size=2)
    for _ in range(2):
        parts = [layer(u[:, :2], inference_params=params)]
        params.seqlen_offset = 2
        parts.append(layer(u[:, 2:7], inference_params=params))
        params.seqlen_offset = 7
        parts.append(layer(u[:, 7:8], inference_params=params))
        conv, ssm = params.key_value_memory_dict[3]
        y, *cache = layer.step(u[:, 8:], conv, ssm)
        assert cache[0] is conv
        assert cache[1] is ssm
        torch.testing.assert_close(torch.cat([*parts, y], dim=1), whole, rtol=0, atol=1e-12)
        params.reset(max_seqlen=9, max_batch_size=2)


@BOTH
def test_a_cache_is_the_originals(cls: Any) -> None:
    layer = build(cls)
    channels = layer.conv1d.weight.shape[0]
    conv, ssm = layer.allocate_inference_cache(5, max_seqlen=100)
    assert conv.shape == (5, channels, 4)
    assert ssm.shape == ((5, 32, 3) if cls is Mamba else (5, 8, 4, 4))
    conv, ssm = layer.allocate_inference_cache(2, 100, dtype=torch.bfloat16)
    assert conv.dtype == ssm.dtype == torch.bfloat16
    layer.bfloat16().step(tokens(1).bfloat16(), conv, ssm)
    assert conv.dtype == ssm.dtype == torch.bfloat16
    assert torch.equal(conv[..., :3], torch.zeros(2, channels, 3, dtype=conv.dtype))
    assert conv[..., 3].abs().min() > 0  # the newest input lies last
    assert ssm.abs().max() > 0


@BOTH
def test_gradients_flow_through_a_prompt_and_a_step(cls: Any) -> None:
    layer, u = build(cls), tokens()
    expected = torch.autograd.grad(layer(u)[:, 7:].square().sum(), layer.in_proj.weight)[0]
    params = InferenceParams(9, 2)
    layer(u[:, :7], inference_params=params)
    params.seqlen_offset = 7
    steps = [layer(u[:, t : t + 1], inference_params=params) for t in (7, 8)]
    got = torch.autograd.grad(torch.cat(steps, 1).square().sum(), layer.in_proj.weight)[0]
    torch.testing.assert_close(got, expected)


@BOTH
def test_types_and_devices(cls: Any) -> None:
    layer = cls(16, dtype=torch.bfloat16, device="meta", **SMALL[cls])
    assert {each.device.type for each in layer.parameters()} == {"meta"}
    whole = {name for name, each in layer.named_parameters() if each.dtype == torch.float32}
    assert whole == ({"A_log", "D"} if cls is Mamba else {"D"})
    marked = {name for name, each in layer.named_parameters() if hasattr(each, "_no_weight_decay")}
    assert marked == ({"A_log", "D"} if cls is Mamba else {"A_log", "D", "dt_bias"})
    layer = cls(16, dtype=torch.bfloat16, **SMALL[cls])
    assert layer(tokens().bfloat16()).dtype == torch.bfloat16


def test_initialisation_follows_the_arguments() -> None:
    assert Mamba(16, expand=1.5).in_proj.weight.shape == (48, 16)
    layer = Mamba(16, dt_rank=4, dt_init="constant", dt_scale=3.0)
    assert torch.equal(layer.dt_proj.weight, torch.full((32, 4), 1.5))
    drawn = Mamba(64, dt_rank=4, dt_scale=3.0).dt_proj.weight
    assert 1.4 < drawn.abs().max() <= 1.5
    drawn = Mamba2(64, conv_init=0.01).conv1d.weight
    assert 0.009 < drawn.abs().max() <= 0.01


def test_mamba2_keeps_packed_sequences_apart_and_takes_flat_input() -> None:
    layer, u = build(Mamba2), tokens()
    seq_idx = torch.tensor([[0] * 4 + [1] * 5] * 2, dtype=torch.int32)
    apart = torch.cat([layer(u[:, :4]), layer(u[:, 4:])], dim=1)
    torch.testing.assert_close(layer(u, seq_idx=seq_idx), apart, rtol=0, atol=1e-12)
    assert torch.equal(layer(u.flatten(0, 1), seqlen=9), layer(u).flatten(0, 1))


def test_the_gated_norm() -> None:
    norm = RMSNormGated(16, eps=1e-3, group_size=8, norm_before_gate=False)
    x, z = tokens().float(), tokens().float() * 2
    assert set(norm.state_dict()) == {"weight"}
    expected = rmsnorm_fn(x, norm.weight, None, z, 1e-3, 8, norm_before_gate=False)
    assert torch.equal(norm(x, z), expected)


@pytest.mark.refuses
def test_what_is_not_served_is_named() -> None:
    with pytest.raises(UsageError, match="Mamba: dt_init is 'zero'"):
        Mamba(16, dt_init="zero")
    with pytest.raises(UsageError, match="Mamba2: d_ssm is 16, and only all of .* = 32"):
        Mamba2(16, headdim=4, d_ssm=16)
    with pytest.raises(UsageError, match="Mamba2: process_group is not served"):
        Mamba2(16, headdim=4, process_group=object())
    layer, u = build(Mamba2), tokens()
    with pytest.raises(UsageError, match="Mamba2: cu_seqlens is not served"):
        layer(u, cu_seqlens=torch.tensor([0, 9]))
    params = InferenceParams(9, 2)
    layer(u, inference_params=params)
    with pytest.raises(UsageError, match="the cache of layer 3 is of 2 streams, and 1 came"):
        layer(u[:1], inference_params=params)
    layer.layer_idx = None
    with pytest.raises(UsageError, match="Mamba2: inference_params needs a layer_idx"):
        layer(u, inference_params=params)
