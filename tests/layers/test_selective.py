"""SelectiveSSM and Mamba: initialisation as the paper states it, and one call for every length."""

import math

import pytest
import torch

import adder
from adder.layers import Mamba, SelectiveSSM, parameter_groups
from adder.layers.state import flatten_state

LAYERS = [lambda: SelectiveSSM(12, state_size=5), lambda: Mamba(8, d_state=5, d_conv=3)]
WIDTHS = [12, 8]


@pytest.fixture(params=range(len(LAYERS)), ids=["SelectiveSSM", "Mamba"])
def layer(request):
    torch.manual_seed(0)
    layer = LAYERS[request.param]().double()
    layer.width = WIDTHS[request.param]
    return layer


@pytest.mark.parametrize("cuts", [(1,), (5,), (1, 2, 3), tuple(range(1, 11))])
def test_chunk_by_chunk_equals_the_whole(layer, cuts):
    u = torch.randn(2, 11, layer.width, dtype=torch.float64)
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
    u = torch.randn(2, 4, layer.width, dtype=torch.float64)
    y, none = layer(u)
    again, state = layer(u, layer.initial_state(2))
    assert none is None
    assert state is not None
    assert torch.equal(y, again)


def test_a_state_is_not_changed_in_place(layer):
    u = torch.randn(1, 4, layer.width, dtype=torch.float64)
    _, state = layer(u, layer.initial_state(1))
    before = {name: each.clone() for name, each in flatten_state(state).items()}
    layer(u, state)
    for name, each in flatten_state(state).items():
        assert torch.equal(each, before[name])


def test_gradients_flow_through_the_state(layer):
    u = torch.randn(1, 6, layer.width, dtype=torch.float64)
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
    u = torch.randn(1, 9, layer.width, dtype=torch.float64)
    seq_idx = torch.tensor([[0, 0, 0, 1, 2, 2, 2, 2, 2]], dtype=torch.int32)
    packed, _ = layer(u, seq_idx=seq_idx)
    apart = torch.cat([layer(u[:, a:b])[0] for a, b in ((0, 3), (3, 4), (4, 9))], dim=1)
    torch.testing.assert_close(packed, apart, rtol=1e-12, atol=1e-12)


def test_initialisation_is_the_papers():
    """Section 3.6: A real, A_n = -(n + 1); dt's bias is softplus^-1 of log-uniform [1e-3, 1e-1]; D = 1."""
    torch.manual_seed(0)
    layer = Mamba(64, d_state=16)
    inner, rank = 128, 4
    A = -torch.exp(layer.A_log)
    torch.testing.assert_close(A, -torch.arange(1.0, 17.0).expand(inner, 16))
    assert torch.equal(layer.D, torch.ones(inner))
    dt = torch.nn.functional.softplus(layer.dt_proj.bias)
    assert dt.min() >= 1e-3 * (1 - 1e-4)
    assert dt.max() <= 1e-1 * (1 + 1e-4)
    uniform = (dt.log() - math.log(1e-3)) / (math.log(1e-1) - math.log(1e-3))
    # The mean of 128 uniform draws has standard deviation 1 / sqrt(12 * 128); five of them.
    assert abs(uniform.mean() - 0.5) < 5 / math.sqrt(12 * inner)
    assert layer.dt_proj.weight.abs().max() <= rank**-0.5
    assert layer.dt_proj.weight.abs().max() > 0.9 * rank**-0.5
    assert layer.x_proj.weight.shape == (rank + 2 * 16, inner)


def test_parameter_names_and_shapes_are_mamba_ssms():
    shapes = {name: tuple(each.shape) for name, each in Mamba(768).named_parameters()}
    assert shapes == {
        "A_log": (1536, 16),
        "D": (1536,),
        "in_proj.weight": (3072, 768),
        "conv1d.weight": (1536, 1, 4),
        "conv1d.bias": (1536,),
        "x_proj.weight": (80, 1536),
        "dt_proj.weight": (1536, 48),
        "dt_proj.bias": (1536,),
        "out_proj.weight": (768, 1536),
    }


def test_bidirectional_is_the_sum_of_both_readings():
    torch.manual_seed(0)
    layer = Mamba(8, bidirectional=True).double()
    forward = Mamba(8).double()
    forward.load_state_dict(
        {k: v for k, v in layer.state_dict().items() if not k.startswith("reverse.")}
    )
    backward = Mamba(8).double()
    backward.load_state_dict(
        layer.state_dict() | {k[8:]: v for k, v in layer.state_dict().items() if "reverse." in k},
        strict=False,
    )
    u = torch.randn(2, 7, 8, dtype=torch.float64)
    expected = forward(u)[0] + backward(u.flip(1))[0].flip(1)
    torch.testing.assert_close(layer(u)[0], expected, rtol=1e-12, atol=1e-12)


def test_bidirectional_keeps_packed_sequences_apart():
    torch.manual_seed(0)
    layer = Mamba(8, bidirectional=True).double()
    u = torch.randn(1, 9, 8, dtype=torch.float64)
    seq_idx = torch.tensor([[3, 3, 3, 5, 6, 6, 6, 6, 6]], dtype=torch.int32)
    apart = torch.cat([layer(u[:, a:b])[0] for a, b in ((0, 3), (3, 4), (4, 9))], dim=1)
    torch.testing.assert_close(layer(u, seq_idx=seq_idx)[0], apart, rtol=1e-12, atol=1e-12)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["ssm"], "the state holds a Tensor, expected conv and ssm"),
        (lambda state: {"conv": state["conv"]}, "the state holds conv, expected conv and ssm"),
        (lambda state: {**state, "cell": state["ssm"]}, "holds conv, ssm, cell"),
    ],
)
def test_a_state_of_another_layer_is_refused(change, message):
    layer = Mamba(8)
    with pytest.raises(adder.UsageError, match=message):
        layer(torch.ones(1, 2, 8), change(layer.initial_state(1)))
    with pytest.raises(TypeError, match="state is a dict, expected a tensor"):
        SelectiveSSM(8)(torch.ones(1, 2, 8), layer.initial_state(1))


@pytest.mark.refuses
def test_bidirectional_refuses_a_state():
    layer = Mamba(8, bidirectional=True)
    with pytest.raises(adder.UsageError, match="bidirectional layer .* has no state"):
        layer.initial_state(1)
    with pytest.raises(adder.UsageError, match="takes no state"):
        layer(torch.randn(1, 3, 8), Mamba(8).initial_state(1))


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mamba(0), "d_model 0"),
        (lambda: Mamba(8, d_conv=0), "d_conv 0"),
        (lambda: Mamba(8, d_state=0), "state_size 0"),
        (lambda: Mamba(8, dt_min=0.2), "dt_min <= dt_max"),
        (lambda: SelectiveSSM(8, dt_rank=0), "dt_rank 0"),
    ],
)
def test_impossible_sizes_are_refused(make, message):
    with pytest.raises(adder.UsageError, match=message):
        make()


def test_no_weight_decay_on_A_D_biases_and_norms():
    model = adder.LanguageModel(adder.LanguageModelConfig(vocab_size=9, d_model=8, n_layer=1))
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1)
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    assert decayed == {
        "backbone.embedding.weight",
        *(
            f"backbone.layers.0.mixer.{name}.weight"
            for name in ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")
        ),
    }
    assert sum(len(group["names"]) for group in groups) == len(list(model.parameters()))
