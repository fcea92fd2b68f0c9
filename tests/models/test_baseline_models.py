"""Language models of other blocks, to compare with: the same call, the same promises, and refusals by name."""

import pytest
import torch

from adder import LanguageModel, LanguageModelConfig, Stream, UsageError
from adder.models.config import LAYERS, SETTINGS
from adder.models.decoder import Decoder

SIZES = {"vocab_size": 11, "d_model": 16, "n_layer": 2}
MORE = {
    "s4": {"d_state": 8},
    "s4d": {"d_state": 8, "dt_max": 0.2},
    "transformer": {"n_heads": 2, "bias": True},
    "lstm": {"intermediate_size": 12},
    "gru": {"bias": True},
}
EXACT = {"rtol": 1e-10, "atol": 1e-11}


@pytest.fixture(params=MORE)
def model(request):
    torch.manual_seed(0)
    config = LanguageModelConfig(**SIZES, layer=request.param, **MORE[request.param])
    return LanguageModel(config).double()


def ids(*shape):
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("tie", [True, False])
def test_its_size_is_known_before_it_is_made(layer, tie):
    more = {"headdim": 16} if layer == "mamba2" else MORE.get(layer, {})
    config = LanguageModelConfig(**SIZES, layer=layer, tie_embeddings=tie, **more)
    count = sum(each.numel() for each in LanguageModel(config).parameters())
    assert config.parameter_count() == count
    assert LanguageModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("cuts", [(1,), (3, 4, 9), tuple(range(1, 13))])
def test_a_text_in_pieces_equals_the_whole(model, cuts):
    x = ids(2, 13)
    state, parts = model.initial_state(2), []
    for piece in x.tensor_split(cuts, dim=1):
        out = model(piece, state=state)
        state = out.state
        parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), model(x).logits, **EXACT)


def test_written_tokens_are_those_of_reading_again(model):
    x = ids(2, 7)
    with torch.no_grad():
        for _ in range(6):
            x = torch.cat([x, model(x).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(x[:, :7], 6, temperature=0.0), x)
    assert Decoder(model).refusal == f"the blocks are {model.config.layer}"


def test_it_learns(model):
    model, x = model.float(), ids(4, 12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = model(x, labels=x).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(each.grad is not None for each in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_layers_that_are_run_again_give_the_same_gradients(model):
    x = ids(2, 9)
    plain = torch.autograd.grad(model(x, labels=x).loss, list(model.parameters()))
    model.gradient_checkpointing_enable()
    again = torch.autograd.grad(model(x, labels=x).loss, list(model.parameters()))
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_saved_and_loaded_it_is_the_same_model(model, tmp_path):
    model = model.float().eval()
    for format in ("huggingface", "mamba_ssm"):
        with pytest.raises(UsageError, match=f"{model.config.layer} blocks"):
            model.save_pretrained(tmp_path / "model", format)
    model.save_pretrained(tmp_path / "model")
    loaded = LanguageModel.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded(ids(2, 5)).logits, model(ids(2, 5)).logits)


def test_a_stream_reads_it(model, tmp_path):
    stream = Stream(model.float().eval())
    stream.feed([1, 2, 3])
    stream.save(tmp_path / "state")
    loaded = Stream.load(tmp_path / "state", model)
    assert list(stream.generate(5, temperature=0)) == list(loaded.generate(5, temperature=0))


def test_padding_and_packing_are_honoured_or_refused(model):
    x, mask = ids(2, 6), torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1]] * 2, dtype=torch.int32)
    if model.config.layer != "transformer":
        for options in ({"attention_mask": mask}, {"seq_idx": seq_idx}):
            with pytest.raises(UsageError, match="(padding|seq_idx) is not honoured"):
                model(x, **options)
        return
    logits = model(x, mask).logits
    for row in range(2):
        kept = mask[row].bool()
        torch.testing.assert_close(
            logits[row, kept], model(x[row : row + 1, kept]).logits[0], **EXACT
        )
    packed = model(x, seq_idx=seq_idx).logits
    torch.testing.assert_close(packed[:, 3:], model(x[:, 3:]).logits, **EXACT)
    written = model.generate(x, 4, mask, temperature=0.0)[:, 6:]
    for row in range(2):
        alone = model.generate(x[row : row + 1, mask[row].bool()], 4, temperature=0.0)[0, -4:]
        assert torch.equal(written[row], alone)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "rwkv"}, "layer is 'rwkv', expected one of mamba, mamba2, s4"),
        ({"layer": "gru", "d_state": 4}, "d_state is of mamba or mamba2 or s4 or s4d blocks"),
        ({"layer": "s4", "d_state": 7}, "d_state is 7, expected an even number"),
        ({"layer": "lstm", "d_conv": 3}, "d_conv is of mamba or mamba2 blocks"),
        ({"layer": "transformer", "n_heads": 3}, "n_heads 3 must divide d_model 16"),
        ({"n_heads": 3}, "n_heads is of transformer blocks"),
        ({"layer": "gru", "weights": "int8"}, "weights int8 are of mamba and mamba2 blocks"),
    ],
)
def test_sizes_that_make_no_model_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        LanguageModelConfig(**SIZES, **options)


def test_every_setting_of_a_block_is_a_field():
    fields = LanguageModelConfig(**SIZES).__dataclass_fields__
    assert set().union(*SETTINGS.values()) <= fields.keys()
