"""SequenceClassifier: every view of one model equal, padding inert, and what it refuses."""

import doctest

import pytest
import torch
from torch.nn import functional as F

import adder
from adder import SequenceClassifier, SequenceClassifierConfig
from adder.layers import parameter_groups
from adder.layers.state import flatten_state, map_state
from adder.models import classifier

SIZES = {"classes": 3, "d_input": 2, "d_model": 8, "n_layer": 2, "dropout": 0.1}
CAUSAL = {
    "s4": {"layer": "s4", "d_state": 8},
    "s4-legt-rms-postnorm": {
        **{"layer": "s4", "d_state": 8, "measure": "legt", "n_ssm": 2, "norm": "rms"},
        **{"prenorm": False},
    },
    "s4d": {"layer": "s4d", "d_state": 8},
    "s4d-bilinear-two-channels": {
        **{"layer": "s4d", "d_state": 8, "method": "bilinear", "init": "lin", "channels_out": 2},
        **{"glu": False, "activation": "silu", "final_norm": False},
    },
    "s4d-taps": {"layer": "s4d", "d_state": 8, "l_max": 5},
    "mamba": {"layer": "mamba", "d_state": 4},
}
LENGTH = 23


def make(dtype=torch.float64, **settings) -> SequenceClassifier:
    torch.manual_seed(0)
    return SequenceClassifier(SequenceClassifierConfig(**{**SIZES, **settings})).to(dtype).eval()


def values(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def in_chunks(model, x, cuts, rate=1.0):
    state, out = model.initial_state(len(x)), None
    for piece in x.tensor_split(cuts, dim=1):
        out = model(piece, state=state, rate=rate)
        state = out.state
    return out.logits


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_a_convolution_is_a_recurrence_at_any_chunking(name, pooling, dtype, tolerance):
    model = make(dtype, pooling=pooling, **CAUSAL[name])
    x = values(2, LENGTH, 2, dtype=dtype)
    whole = model(x).logits
    for cuts in ((), (1,), (7, 8, 20), tuple(range(1, LENGTH))):
        error = (in_chunks(model, x, cuts) - whole).abs().max() / whole.abs().max()
        assert error < tolerance


@pytest.mark.parametrize("pooling", ["mean", "last"])
@torch.no_grad()
def test_logits_after_each_chunk_are_those_of_all_read_so_far(pooling):
    model = make(pooling=pooling, **CAUSAL["s4d"])
    x = values(2, LENGTH, 2)
    state = model.initial_state(2)
    for end in range(1, LENGTH + 1):
        out = model(x[:, end - 1 : end], state=state)
        state = out.state
        torch.testing.assert_close(out.logits, model(x[:, :end]).logits, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize(
    "settings",
    [*CAUSAL.values(), *({"layer": k, "d_state": 8, "bidirectional": True} for k in ("s4", "s4d"))],
    ids=[*CAUSAL, "s4-bidirectional", "s4d-bidirectional"],
)
@torch.no_grad()
def test_padding_is_inert_whatever_it_holds(settings, pooling):
    model = make(pooling=pooling, **settings)
    x, lengths = values(3, LENGTH, 2), [LENGTH, 9, 1]
    for row, length in enumerate(lengths):
        x[row, length:] = float("nan")
    padded = model(x, torch.tensor(lengths)).logits
    for row, length in enumerate(lengths):
        alone = model(x[row : row + 1, :length]).logits[0]
        torch.testing.assert_close(padded[row], alone, rtol=1e-10, atol=1e-11)


@torch.no_grad()
def test_tokens_are_classified_too_and_padding_may_hold_no_token():
    model = make(vocab_size=5, d_input=None, layer="s4d", d_state=4)
    x = torch.randint(0, 5, (2, 7), generator=torch.Generator().manual_seed(2))
    whole = model(x).logits
    torch.testing.assert_close(in_chunks(model, x, (3,)), whole, rtol=1e-10, atol=1e-11)
    x[1, 4:] = -100
    padded = model(x, torch.tensor([7, 4])).logits
    torch.testing.assert_close(padded[1], model(x[1:, :4]).logits[0], rtol=1e-10, atol=1e-11)


@torch.no_grad()
def test_values_are_scaled_as_the_training_was():
    plain = make()
    scaled = make(input_mean=(3.0, -1.0), input_std=(2.0, 0.5))
    x = values(2, 5, 2)
    shifted = x * torch.tensor([2.0, 0.5]) + torch.tensor([3.0, -1.0])
    torch.testing.assert_close(scaled(shifted).logits, plain(x).logits, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ["s4", "s4d"])
@torch.no_grad()
def test_rate_is_a_longer_step_in_every_view(name):
    model = make(**CAUSAL[name])
    x = values(1, LENGTH, 2)
    fast = model(x, rate=2.0).logits
    torch.testing.assert_close(in_chunks(model, x, (5, 6), rate=2.0), fast, rtol=1e-10, atol=1e-11)
    for block in model.blocks():
        block.mixer.layer.dt += torch.log(torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(model(x).logits, fast, rtol=1e-10, atol=1e-11)


def test_loss_is_the_cross_entropy_and_has_gradients_everywhere():
    model = make(**CAUSAL["s4d"]).train()
    labels = torch.tensor([2, 0])
    out = model(values(2, 6, 2), labels=labels)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, labels))
    assert out.state is None
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_dropout_drops_a_channel_for_all_steps_where_it_is_tied(tied):
    model = make(layer="mamba", n_layer=1, dropout=0.5, tie_dropout=tied).train()
    seen = []
    next(model.blocks()).dropout.register_forward_hook(lambda _, __, out: seen.append(out == 0))
    model(values(4, 50, 2))
    (dropped,) = seen
    assert 0.2 < dropped.double().mean() < 0.8
    by_channel = dropped.double().mean(1)
    assert bool(((by_channel == 0) | (by_channel == 1)).all()) == tied


def test_step_sizes_learn_at_their_own_rate_without_decay():
    groups = parameter_groups(make(**CAUSAL["s4"]), lr=0.01, weight_decay=0.1)
    own = [group for group in groups if group["lr"] == 1e-3]
    names = {name for group in own for name in group["names"]}
    kinds = ("dt", "A_real", "A_imag", "B", "P")
    assert names == {f"layers.{i}.mixer.layer.{kind}" for i in range(2) for kind in kinds}
    assert {group["weight_decay"] for group in own} == {0.0}


def test_the_state_is_a_plain_tree_of_rows():
    model = make(**CAUSAL["s4d"])
    x = values(3, 4, 2)
    state = model(x, state=model.initial_state(3)).state
    assert all(isinstance(tensor, torch.Tensor) for tensor in flatten_state(state).values())
    assert state[-1]["count"].tolist() == [4, 4, 4]
    kept = map_state(lambda t: t[1:], state)
    torch.testing.assert_close(
        model(x[1:], state=kept).logits, model(torch.cat([x, x], 1)).logits[1:], rtol=1e-10, atol=0
    )


def test_the_sum_of_a_long_stream_keeps_its_digits():
    model = make(torch.float32, **CAUSAL["mamba"])
    assert model.initial_state(1)[-1]["sum"].dtype == torch.float64


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same_model(name, tmp_path):
    model = make(
        torch.float32, input_mean=(0.1, 0.2), input_std=(1.5, 2.0), labels=("a", "b", "c"),
        sampling_rate=8000.0, **CAUSAL[name],
    )  # fmt: skip
    model.save_pretrained(tmp_path / "model")
    loaded = SequenceClassifier.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    x = values(1, 5, 2, dtype=torch.float32)
    assert torch.equal(loaded(x).logits, model(x).logits)
    with pytest.raises(adder.UsageError, match="another kind of model: adder.SequenceClassifier"):
        adder.LanguageModel.from_pretrained(tmp_path / "model")


def test_a_language_model_is_told_from_a_classifier(tmp_path):
    config = adder.LanguageModelConfig(vocab_size=5, d_model=8, n_layer=1)
    adder.LanguageModel(config).save_pretrained(tmp_path)
    with pytest.raises(adder.UsageError, match="another kind of model: adder.LanguageModel"):
        SequenceClassifier.from_pretrained(tmp_path)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("settings", "call", "message"),
    [
        (
            {},
            lambda m: m(values(2, 5)),
            r"inputs has shape \(2, 5\), expected \(batch, length, 2\)",
        ),
        ({}, lambda m: m(values(2, 0, 2)), r"shape \(2, 0, 2\)"),
        ({}, lambda m: m(values(2, 5, 2).long()), "inputs is torch.int64, expected real values"),
        (
            {},
            lambda m: m(values(2, 5, 2), torch.tensor([5, 6])),
            "lengths holds 6, expected 1 to 5",
        ),
        ({}, lambda m: m(values(2, 5, 2), torch.tensor([0, 5])), "lengths holds 0"),
        ({}, lambda m: m(values(2, 5, 2), torch.tensor([5])), r"lengths has shape \(1,\)"),
        ({}, lambda m: m(values(2, 5, 2), labels=torch.tensor([0, 3])), "labels holds 3"),
        ({}, lambda m: m(values(2, 5, 2), rate=0.0), "rate is 0.0, expected a positive number"),
        ({}, lambda m: m(values(2, 5, 2), state=()), "state is not one of this model"),
        (
            {},
            lambda m: m(values(2, 5, 2), torch.tensor([5, 5]), state=m.initial_state(2)),
            "lengths and a state exclude each other",
        ),
        ({"bidirectional": True}, lambda m: m.initial_state(1), "bidirectional model .* no state"),
        (
            {"bidirectional": True},
            lambda m: m(values(1, 5, 2), state=()),
            "bidirectional model .* takes no state",
        ),
        (
            {"layer": "mamba", "bidirectional": True},
            lambda m: m(values(2, 5, 2), torch.tensor([5, 4])),
            "lengths cannot be honoured by a bidirectional Mamba",
        ),
        ({"layer": "mamba"}, lambda m: m(values(2, 5, 2), rate=2.0), "Mamba layer has no sampling"),
        (
            {"vocab_size": 4, "d_input": None},
            lambda m: m(torch.tensor([[0, 4]])),
            "inputs holds 4, expected 0 to 3",
        ),
    ],
)
def test_bad_input_is_refused_by_name(settings, call, message):
    with pytest.raises(adder.UsageError, match=message):
        call(make(**settings))


def test_the_example_runs():
    result = doctest.testmod(classifier, extraglobs={"torch": torch})
    assert (result.attempted, result.failed) == (7, 0)


@pytest.mark.compiles
def test_torch_compile_takes_the_whole_model():
    model = make(**CAUSAL["mamba"])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = values(2, 5, 2)
    torch.testing.assert_close(compiled(x).logits, model(x).logits, rtol=1e-11, atol=1e-11)
