"""LanguageModel: shapes, loss, states, initialisation, generation, and what it refuses."""

import math

import pytest
import torch

import adder
from adder import LanguageModel, LanguageModelConfig

CONFIG = LanguageModelConfig(vocab_size=11, d_model=16, n_layer=2, d_state=4)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LanguageModel(CONFIG).double()


def ids(*shape):
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(1))


def test_padding_rows_never_reach_the_logits(model):
    assert model.lm_head.weight.shape == (16, 16)
    assert model(ids(2, 5)).logits.shape == (2, 5, 11)


def test_loss_is_the_mean_over_predicted_tokens(model):
    x = ids(2, 6)
    logits, loss, _ = model(x, labels=x)
    by_hand = -logits[:, :-1].log_softmax(-1).gather(2, x[:, 1:, None]).mean()
    torch.testing.assert_close(loss.double(), by_hand, rtol=1e-6, atol=1e-6)


def test_loss_leaves_out_minus_100_and_the_first_token_of_a_packed_sequence(model):
    x = ids(1, 6)
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1]], dtype=torch.int32)
    labels = x.clone()
    labels[0, 5] = -100
    logits, loss, _ = model(x, labels=labels, seq_idx=seq_idx)
    log_p = logits.log_softmax(-1)
    kept = [-log_p[0, t - 1, x[0, t]] for t in (1, 2, 4)]
    torch.testing.assert_close(loss.double(), sum(kept) / 3, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cuts", [(1,), (7,), (3, 4, 9), tuple(range(1, 13))])
def test_a_text_in_pieces_equals_the_whole(model, cuts):
    x = ids(2, 13)
    whole = model(x).logits
    state, parts = model.initial_state(2), []
    for piece in x.tensor_split(cuts, dim=1):
        out = model(piece, state=state)
        state = out.state
        parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-11, atol=1e-11)


def test_packed_sequences_equal_separate_ones(model):
    x = ids(1, 8)
    seq_idx = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]], dtype=torch.int32)
    packed = model(x, seq_idx=seq_idx).logits
    apart = torch.cat([model(x[:, :5]).logits, model(x[:, 5:]).logits], dim=1)
    torch.testing.assert_close(packed, apart, rtol=1e-11, atol=1e-11)


def test_projections_are_rescaled_by_depth_and_the_rest_starts_as_stated():
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(vocab_size=64, d_model=64, n_layer=9, bias=True))
    bound = 1 / math.sqrt(128)  # nn.Linear's: uniform within 1 / sqrt(inputs)
    for block in model.backbone.layers:
        largest = block.mixer.out_proj.weight.abs().max()
        assert 0.95 * bound / 3 < largest <= bound / 3
        assert not block.mixer.in_proj.bias.any()
        assert not block.mixer.out_proj.bias.any()
        assert torch.equal(block.norm.weight, torch.ones(64))
    assert abs(model.backbone.embedding.weight.std() / 0.02 - 1) < 0.1
    assert model.lm_head.weight is model.backbone.embedding.weight


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_parameter_count_is_exact(tie, bias):
    config = LanguageModelConfig(
        vocab_size=13, d_model=24, n_layer=3, d_state=5, bias=bias, tie_embeddings=tie
    )
    made = sum(each.numel() for each in LanguageModel(config).parameters())
    assert config.parameter_count() == made


def test_published_size_has_the_published_count():
    """mamba-130m: 24 layers of 768, 50280 rows; 129,135,360 parameters with the tied head once."""
    config = LanguageModelConfig(vocab_size=50277, d_model=768, n_layer=24)
    assert config.parameter_count() == 129_135_360


def test_residuals_stay_in_float32_under_autocast():
    model = LanguageModel(CONFIG)
    seen = []
    for block in model.backbone.layers:
        block.register_forward_hook(lambda _, __, out: seen.append(out[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        out = model(ids(2, 5), labels=ids(2, 5), state=model.initial_state(2))
    assert seen == [torch.float32] * 2
    assert out.loss.dtype == torch.float32
    assert {each.dtype for layer in out.state for each in layer.values()} == {torch.float32}
    exact = model(ids(2, 5)).logits
    # bfloat16 has 8 bits: 2^-8 at each of a dozen roundings of values of about one
    assert (out.logits.float() - exact).abs().max() < 12 * 2**-8 * exact.abs().max()


def test_generation_is_the_argmax_of_the_whole_text_again(model):
    prompt = ids(3, 4)
    text = model.generate(prompt, 6, temperature=0.0)
    assert text.shape == (3, 10)
    for t in range(4, 10):
        expected = model(text[:, :t]).logits[:, -1].argmax(-1)
        assert torch.equal(text[:, t], expected)


def test_generation_repeats_with_its_seed_and_stops_at_its_token(model):
    prompt = ids(2, 4)
    once = model.generate(prompt, 12, seed=3)
    assert torch.equal(once, model.generate(prompt, 12, seed=3))
    assert not torch.equal(once, model.generate(prompt, 12, seed=4))
    stop = int(once[0, 6])
    stopped = model.generate(prompt, 12, seed=3, stop=stop)
    row = stopped[0, 4:].tolist()
    assert row[row.index(stop) :] == [stop] * (len(row) - row.index(stop))


def test_saved_and_loaded_it_is_the_same_model(model, tmp_path):
    model = model.float()
    model.save_pretrained(tmp_path / "model")
    loaded = LanguageModel.from_pretrained(tmp_path / "model")
    assert loaded.config == CONFIG
    assert torch.equal(loaded(ids(2, 5)).logits, model(ids(2, 5)).logits)


@pytest.mark.compiles
def test_torch_compile_takes_the_whole_model(model):
    x = ids(2, 5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x).logits, model(x).logits, rtol=1e-11, atol=1e-11)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(ids(5)), r"input_ids has shape \(5,\)"),
        (lambda m: m(ids(2, 0)), r"input_ids has shape \(2, 0\)"),
        (lambda m: m(ids(2, 3) + 9), "input_ids holds"),
        (lambda m: m(ids(2, 3) - 11), "input_ids holds -"),
        (lambda m: m(ids(1, 2), torch.tensor([[0, 1]])), "attention_mask has zeros"),
        (lambda m: m.generate(ids(1, 2), -1), "max_new_tokens is -1"),
    ],
)
def test_bad_input_is_refused_by_name(model, call, message):
    with pytest.raises(adder.UsageError, match=message):
        call(model)
