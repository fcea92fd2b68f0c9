"""LanguageModel: shapes, loss, states, initialisation, generation, and what it refuses."""

import dataclasses
import math

import pytest
import torch

import adder
from adder import LanguageModel, LanguageModelConfig
from adder.errors import UsageError

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
    loss, logits, _ = model(x, labels=x)
    by_hand = -logits[:, :-1].log_softmax(-1).gather(2, x[:, 1:, None]).mean()
    torch.testing.assert_close(loss.double(), by_hand, rtol=1e-6, atol=1e-6)


def test_loss_leaves_out_minus_100_and_the_first_token_of_a_packed_sequence(model):
    x = ids(1, 6)
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1]], dtype=torch.int32)
    labels = x.clone()
    labels[0, 5] = -100
    loss, logits, _ = model(x, labels=labels, seq_idx=seq_idx)
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


BF16 = LanguageModelConfig(vocab_size=11, d_model=64, n_layer=3)


def bf16_and_exact():
    """A bfloat16 model, and one of the same rounded weights in float64."""
    torch.manual_seed(0)
    model = LanguageModel(BF16).bfloat16()
    exact = LanguageModel(BF16).double()
    exact.load_state_dict(model.state_dict())
    return model, exact


def test_a_bfloat16_model_errs_as_its_activations_do():
    model, exact = bf16_and_exact()
    x = ids(2, 40)
    out, expected = model(x, labels=x, state=model.initial_state(2)), exact(x, labels=x)
    assert out.logits.dtype == torch.bfloat16
    assert {each.dtype for layer in out.state for each in (layer["ssm"],)} == {torch.float32}
    # Eight roundings a block, and two behind: each at most 2^-8 of its value, in random directions.
    bound = 2**-8 * math.sqrt(8 * BF16.n_layer + 2) * expected.logits.abs().max()
    error = (out.logits.double() - expected.logits).abs()
    assert error.max() < bound
    assert error.mean() > 2**-12 * expected.logits.abs().mean()  # it did compute in bfloat16
    assert abs(out.loss.double() - expected.loss) < 2**-8 * expected.loss


def test_a_bfloat16_model_keeps_residuals_in_float32_and_reads_in_pieces():
    model, exact = bf16_and_exact()
    seen = []
    for block in model.backbone.layers:
        block.register_forward_hook(lambda _, __, out: seen.append(out[0].dtype))
    x = ids(2, 40)
    whole = model(x).logits.double()
    assert set(seen) == {torch.float32}
    state, parts = model.initial_state(2), []
    for piece in x.tensor_split((1, 2, 17), dim=1):
        out = model(piece, state=state)
        state = out.state
        parts.append(out.logits.double())
    # A matrix product may add up in another order in pieces: the pieces err as the whole does.
    difference = (torch.cat(parts, dim=1) - whole).abs().max()
    assert difference <= 2 * (whole - exact(x).logits).abs().max()


def test_a_bfloat16_model_generates_what_its_own_argmax_says():
    model, exact = bf16_and_exact()
    text = model.generate(ids(2, 4), 8, temperature=0.0)
    for t in range(4, 12):
        logits = exact(text[:, :t]).logits[:, -1]
        chosen = logits.gather(1, text[:, t : t + 1])[:, 0]
        # of two nearly equal logits the exact model may take the other
        assert (logits.max(dim=1).values - chosen).max() < 2**-5 * logits.abs().max()


def test_a_bfloat16_model_has_gradients():
    model, exact = bf16_and_exact()
    x = ids(2, 12)
    for each in (model, exact):
        each(x, labels=x).loss.backward()
    expected = dict(exact.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.bfloat16
        error = (parameter.grad.double() - expected[name].grad).norm()
        assert error < 0.05 * expected[name].grad.norm(), name


def test_saved_and_loaded_in_another_type(tmp_path):
    model, _ = bf16_and_exact()
    model.save_pretrained(tmp_path)
    loaded = LanguageModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {each.dtype for each in loaded.parameters()} == {torch.bfloat16}
    assert loaded.lm_head.weight is loaded.backbone.embedding.weight
    assert torch.equal(loaded(ids(2, 5)).logits, model(ids(2, 5)).logits)
    assert LanguageModel.from_pretrained(tmp_path).lm_head.weight.dtype == torch.float32
    with pytest.raises(adder.UsageError, match=r"dtype is torch.int8"):
        LanguageModel.from_pretrained(tmp_path, dtype=torch.int8)


@pytest.mark.parametrize("keep", [1, 3, 5, 9])
def test_logits_of_the_last_tokens_alone(model, keep):
    x = ids(2, 5)
    all_of_them = model(x, state=model.initial_state(2))
    out = model(x, state=model.initial_state(2), logits_to_keep=keep)
    torch.testing.assert_close(out.logits, all_of_them.logits[:, -keep:], rtol=1e-12, atol=1e-12)
    assert torch.equal(out.state[1]["ssm"], all_of_them.state[1]["ssm"])


@pytest.mark.parametrize("keep", [1, 4, 5, 7, 13])
@pytest.mark.parametrize("carried", [False, True])
def test_a_long_prompt_is_read_in_pieces(model, keep, carried, monkeypatch):
    monkeypatch.setattr("adder.models.language_model.READ_AT_ONCE", 10)
    monkeypatch.setattr("adder.models.language_model.SHORTEST_PIECE", 1)
    lengths = []
    model.backbone.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    x = ids(2, 13)
    before = model(ids(2, 3), state=model.initial_state(2)).state if carried else None
    whole = model(x, state=before)
    lengths.clear()
    with torch.no_grad():
        out = model(x, state=before, logits_to_keep=keep)
    assert lengths == [5, 5, 3]
    torch.testing.assert_close(out.logits, whole.logits[:, -keep:], rtol=1e-11, atol=1e-11)
    assert (out.state is not None) == carried
    if carried:
        torch.testing.assert_close(out.state, whole.state, rtol=1e-11, atol=1e-11)


def test_packed_sequences_are_not_cut_into_pieces(model, monkeypatch):
    monkeypatch.setattr("adder.models.language_model.READ_AT_ONCE", 4)
    monkeypatch.setattr("adder.models.language_model.SHORTEST_PIECE", 1)
    x, seq_idx = ids(1, 8), torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]], dtype=torch.int32)
    with torch.no_grad():
        packed = model(x, seq_idx=seq_idx, logits_to_keep=1).logits
    apart = model(x[:, 4:]).logits[:, -1:]
    torch.testing.assert_close(packed, apart, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("carried", [False, True])
def test_checkpointed_layers_give_the_same_bits(precision, carried):
    torch.manual_seed(0)
    model = LanguageModel(CONFIG)
    x = ids(2, 40)
    before = model(ids(2, 3), state=model.initial_state(2)).state

    def step():
        model.zero_grad()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            out = model(x, labels=x, state=before if carried else None)
        out.loss.backward(retain_graph=carried)
        return [out.logits, out.loss, *(each.grad for each in model.parameters())]

    calls = []
    model.backbone.layers[0].mixer.register_forward_pre_hook(lambda *_: calls.append(1))
    plain = step()
    assert len(calls) == 1
    model.gradient_checkpointing_enable()
    again = step()
    assert len(calls) == 3
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        model(x)
    assert len(calls) == 4
    model.gradient_checkpointing_disable()
    step()
    assert len(calls) == 5


def test_hooks_and_replacements_of_projections_are_honoured():
    """As low-rank fine-tuning wraps them: each is called, and what it returns is what counts."""

    class Doubled(torch.nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.inside = inside

        @property
        def weight(self):
            return self.inside.weight

        def forward(self, x):
            return 2 * self.inside(x)

    config = dataclasses.replace(CONFIG, tie_embeddings=False)
    model, x = LanguageModel(config).double(), ids(2, 5)
    plain = model(x).logits
    mixer, names = model.backbone.layers[0].mixer, ("in_proj", "x_proj", "dt_proj", "out_proj")
    for owner, name in [*((mixer, name) for name in names), (model, "lm_head")]:
        projection = getattr(owner, name)
        called = []
        handle = projection.register_forward_hook(lambda *_, called=called: called.append(1))
        torch.testing.assert_close(model(x).logits, plain, rtol=1e-12, atol=1e-12)
        handle.remove()
        assert len(called) == 1
        setattr(owner, name, Doubled(projection))
        wrapped = model(x).logits
        setattr(owner, name, projection)
        with torch.no_grad():
            for each in projection.parameters():
                each *= 2
            torch.testing.assert_close(wrapped, model(x).logits, rtol=1e-12, atol=1e-12)
            for each in projection.parameters():
                each /= 2


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
    model.save_pretrained(tmp_path / "model", "adder")
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
        (lambda m: m(ids(1, 2), logits_to_keep=0), "logits_to_keep is 0, expected at least 1"),
        (lambda m: m(ids(1, 2), labels=ids(1, 2), logits_to_keep=1), "no labels beside it"),
        (lambda m: m.generate(ids(1, 2), -1), "max_new_tokens is -1"),
    ],
)
def test_bad_input_is_refused_by_name(model, call, message):
    with pytest.raises(adder.UsageError, match=message):
        call(model)


def test_a_head_of_its_own_is_not_saved_as_tied(model, tmp_path):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.raises(UsageError, match="lm_head.weight is not the embedding's"):
        model.save_pretrained(tmp_path / "here")
    assert not (tmp_path / "here").exists()
