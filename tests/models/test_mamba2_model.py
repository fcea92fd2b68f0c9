"""A LanguageModel of Mamba-2 or FalconMamba blocks keeps what one of Mamba keeps: pieces, packing, limits, memory."""

import pytest
import torch

from adder import LanguageModel, LanguageModelConfig, UsageError
from adder.models import quantize_model

SIZES = {"vocab_size": 11, "d_model": 16, "n_layer": 2, "d_state": 4, "bias": True}
KINDS = {
    "mamba2": {"layer": "mamba2", "headdim": 8, "ngroups": 2, "chunk_size": 4},
    "limits": {"layer": "mamba2", "headdim": 4, "dt_limit": (0.02, 0.05), "D_has_hdim": True},
    "norm first": {"layer": "mamba2", "headdim": 4, "norm_before_gate": True, "expand": 3},
    "falcon": {"mixer_norm_epsilon": 1e-6, "intermediate_size": 24},
}
EXACT = {"rtol": 1e-10, "atol": 1e-11}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def model(request):
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(**SIZES, **request.param)).double()
    with torch.no_grad():
        for each in model.parameters():
            each += 0.1 * torch.randn_like(each)
    return model


def ids(*shape):
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(1))


def test_its_size_is_known_before_it_is_made(model):
    assert model.config.parameter_count() == sum(each.numel() for each in model.parameters())
    assert LanguageModelConfig.from_dict(model.config.to_dict()) == model.config


@pytest.mark.parametrize("cuts", [(1,), (3, 4, 9), tuple(range(1, 13))])
def test_a_text_in_pieces_equals_the_whole(model, cuts):
    x = ids(2, 13)
    state, parts = model.initial_state(2), []
    for piece in x.tensor_split(cuts, dim=1):
        out = model(piece, state=state)
        state = out.state
        parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), model(x).logits, **EXACT)


def test_packed_sequences_do_not_meet_forwards_or_backwards(model):
    x, seq_idx = ids(1, 13), torch.tensor([[0] * 5 + [1] * 1 + [2] * 7], dtype=torch.int32)
    embedded = []
    handle = model.backbone.embedding.register_forward_hook(
        lambda _, __, out: embedded.append(out.requires_grad_()) or out
    )
    logits = model(x, seq_idx=seq_idx).logits
    handle.remove()
    for number in range(3):
        kept = seq_idx[0] == number
        torch.testing.assert_close(logits[:, kept], model(x[:, kept]).logits, **EXACT)
        (grad,) = torch.autograd.grad(logits[:, kept].sum(), embedded, retain_graph=True)
        assert (grad[:, ~kept] == 0).all()
        assert (grad[:, kept] != 0).any(-1).all()


def test_written_tokens_are_those_of_reading_again(model):
    x = ids(2, 7)
    with torch.no_grad():
        for _ in range(6):
            x = torch.cat([x, model(x).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(x[:, :7], 6, temperature=0.0), x)


def test_layers_that_are_run_again_give_the_same_bits(model):
    x = ids(2, 9)
    plain = torch.autograd.grad(model(x, labels=x).loss, list(model.parameters()))
    model.gradient_checkpointing_enable()
    again = torch.autograd.grad(model(x, labels=x).loss, list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


@torch.no_grad()
def test_rounded_weights(model, tmp_path):
    x, errors = ids(2, 9), {}
    truth = model.float()(x).logits
    for scheme in ("int8", "int4"):
        small = quantize_model(model, scheme)
        errors[scheme] = (small(x).logits - truth).norm() / truth.norm()
        small.save_pretrained(tmp_path / scheme)
        again = LanguageModel.from_pretrained(tmp_path / scheme)
        assert torch.equal(again(x).logits, small(x).logits)
    assert errors["int8"] < errors["int4"] / 3 < 0.1


@torch.no_grad()
def test_bfloat16_keeps_its_residuals_in_float32(model):
    model, x = model.float().bfloat16(), ids(2, 9)
    seen = []
    for block in model.backbone.blocks():
        block.register_forward_hook(lambda _, inputs, out: seen.extend((inputs[0], out[0])))
    assert model(x).logits.dtype == torch.bfloat16
    assert {each.dtype for each in seen} == {torch.float32}


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "mamba3"}, "layer is 'mamba3', expected one of mamba, mamba2"),
        ({"headdim": 8}, "headdim is of mamba2 blocks, and layer is 'mamba'"),
        ({"layer": "mamba2", "dt_rank": 4}, "dt_rank is of mamba blocks, and layer is 'mamba2'"),
        ({"layer": "mamba2", "headdim": 5}, "headdim 5 must divide the 32"),
        ({"layer": "mamba2", "headdim": 8, "ngroups": 3}, "ngroups 3 the number of heads"),
        ({"layer": "mamba2", "headdim": 8, "dt_limit": (0.2, 0.1)}, "dt_limit is"),
        ({"layer": "mamba2", "headdim": 8, "dt_limit": (0.2,)}, "expected two numbers"),
        ({"layer": "mamba2", "headdim": 8, "A_init_range": (0.0, 1.0)}, "numbers above 0"),
        ({"intermediate_size": 0}, "intermediate_size is 0"),
        ({"mixer_norm_epsilon": 0.0}, "mixer_norm_epsilon is 0.0"),
    ],
)
def test_sizes_that_make_no_model_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        LanguageModelConfig(**SIZES, **options)
