"""Padded batches: every row gets what it would get alone, wherever its padding is, and whatever stands there."""

import pytest
import torch

from adder import LanguageModel, LanguageModelConfig, UsageError
from adder.layers import map_state
from adder.models.padding import Padding

SIZES = {"vocab_size": 11, "d_model": 16, "n_layer": 2, "d_state": 4, "bias": True}
KINDS = {
    "mamba": {},
    "falcon": {"mixer_norm_epsilon": 1e-6, "d_conv": 1, "intermediate_size": 20},
    "mamba2": {"layer": "mamba2", "headdim": 8, "ngroups": 2, "chunk_size": 4},
    "mamba2 without norm": {"layer": "mamba2", "headdim": 4, "rmsnorm": False, "d_conv": 2},
}
MASKS = {
    "left": [[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]],
    "right": [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]],
    "between": [[1, 0, 1, 0, 0, 1], [0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 1, 1]],
}
EXACT = {"rtol": 1e-10, "atol": 1e-11}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def model(request):
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(**SIZES, **request.param)).double()
    with torch.no_grad():
        for each in model.parameters():
            each += 0.1 * torch.randn_like(each)  # biases that are zero would leak nothing
    return model


@pytest.fixture(params=MASKS.values(), ids=MASKS.keys())
def mask(request):
    return torch.tensor(request.param)


def ids(mask):
    drawn = torch.randint(0, 11, mask.shape, generator=torch.Generator().manual_seed(1))
    return torch.where(mask.bool(), drawn, 10)


def alone(model, x, mask, row, state=None):
    kept = x[row : row + 1, mask[row].bool()]
    return model(kept, labels=kept, state=state)


def test_logits_loss_and_gradients_are_those_of_each_row_alone(model, mask):
    x = ids(mask)
    out = model(x, mask, labels=x)
    total, count = 0.0, 0
    for row in range(len(x)):
        single = alone(model, x, mask, row)
        torch.testing.assert_close(out.logits[row, mask[row].bool()], single.logits[0], **EXACT)
        predicted = int(mask[row].sum()) - 1
        total = total + (single.loss * predicted if predicted else 0)
        count += predicted
    torch.testing.assert_close(out.loss, total / count, rtol=1e-5, atol=1e-6)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(out.loss, parameters)
    theirs = torch.autograd.grad(total / count, parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_states_are_those_of_each_row_alone_from_any_state(model, mask):
    x = ids(mask)
    state = model(x.flip(1), state=model.initial_state(3)).state
    state = model(x, mask, state=state).state
    for row in range(len(x)):
        before = model(x.flip(1)[row : row + 1], state=model.initial_state(1)).state
        single = alone(model, x, mask, row, before).state
        mine = map_state(lambda each, row=row: each[row : row + 1], state)
        torch.testing.assert_close(mine, single, **EXACT)


def test_a_row_of_padding_alone_leaves_its_state_as_it_is(model):
    x = torch.tensor([[1, 2, 3], [4, 5, 6]])
    state = model(x, state=model.initial_state(2)).state
    after = model(x, torch.tensor([[1, 1, 1], [0, 0, 0]]), state=state).state
    first, second = (map_state(lambda each, r=r: each[r], after) for r in (0, 1))
    torch.testing.assert_close(second, map_state(lambda each: each[1], state), rtol=0, atol=0)
    assert not torch.equal(first[0]["ssm"], state[0]["ssm"][0])


def test_padding_beside_packed_sequences(model):
    mask = torch.tensor([[0, 1, 1, 1, 1, 0], [1, 1, 0, 0, 1, 1]])
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]], dtype=torch.int32)
    x = ids(mask)
    out = model(x, mask, labels=x, seq_idx=seq_idx)
    for row in range(2):
        for number in (0, 1):
            kept = mask[row].bool() & (seq_idx[row] == number)
            single = model(x[row : row + 1, kept])
            torch.testing.assert_close(out.logits[row, kept], single.logits[0], **EXACT)


@torch.no_grad()
def test_a_long_padded_prompt_is_read_in_pieces(model):
    mask = torch.ones(9, 150, dtype=torch.int64)  # pieces of 64
    mask[1, :70], mask[2, 10:], mask[3, ::2] = 0, 0, 0
    x = ids(mask)
    out = model(x, mask, state=model.initial_state(9), logits_to_keep=1)
    for row in range(4):
        single = model(x[row : row + 1, mask[row].bool()], state=model.initial_state(1))
        torch.testing.assert_close(out.logits[row, 0], single.logits[0, -1], **EXACT)
        mine = map_state(lambda each, row=row: each[row : row + 1], out.state)
        torch.testing.assert_close(mine, single.state, **EXACT)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"repetition_penalty": 1.7}])
def test_rows_of_a_padded_batch_are_written_as_they_would_be_alone(model, mask, options):
    x = ids(mask)
    if "num_beams" not in options:
        options = {**options, "temperature": 0.0}
    written = model.generate(x, 5, mask, stop=3, **options)
    assert torch.equal(written[:, : x.shape[1]], x)
    for row in range(len(x)):
        kept = x[row : row + 1, mask[row].bool()]
        single = model.generate(kept, 5, stop=3, **options)[0, kept.shape[1] :]
        assert written[row, x.shape[1] :][: len(single)].tolist() == single.tolist()


def test_layers_that_are_run_again_see_the_padding(model, mask):
    x = ids(mask)
    plain = torch.autograd.grad(model(x, mask, labels=x).loss, list(model.parameters()))
    model.gradient_checkpointing_enable()
    again = torch.autograd.grad(model(x, mask, labels=x).loss, list(model.parameters()))
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


def test_padding_ids_may_be_outside_the_vocabulary():
    model = LanguageModel(LanguageModelConfig(**SIZES))
    mask = torch.tensor([[0, 0, 1, 1]])
    out = model(torch.tensor([[-1, 99, 1, 2]]), mask)
    torch.testing.assert_close(out.logits[:, 2:], model(torch.tensor([[1, 2]])).logits)


def test_a_mask_of_ones_is_none():
    assert Padding.of(torch.ones(2, 3), torch.zeros(2, 3)) is None


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            torch.ones(1, 4),
            r"attention_mask has shape \(1, 4\), expected that of input_ids, \(1, 3\)",
        ),
        (torch.tensor([[1, 2, 1]]), "other numbers than 0 and 1"),
        (torch.tensor([[1, -1e4, 1]]), "other numbers than 0 and 1"),
    ],
)
def test_a_mask_that_is_none_is_refused(mask, message):
    model = LanguageModel(LanguageModelConfig(**SIZES))
    with pytest.raises(UsageError, match=message):
        model(torch.tensor([[1, 2, 3]]), mask)


@pytest.mark.refuses
def test_a_row_without_tokens_is_not_gone_on_from():
    model = LanguageModel(LanguageModelConfig(**SIZES))
    with pytest.raises(UsageError, match="has no token to go on from"):
        model.generate(torch.tensor([[1, 2], [3, 4]]), 1, torch.tensor([[1, 1], [0, 0]]))


@pytest.mark.refuses
def test_steps_that_cannot_be_zero_take_no_padding_beside_a_state():
    config = LanguageModelConfig(**SIZES, layer="mamba2", headdim=8, dt_limit=(0.01, 0.1))
    model, x, mask = LanguageModel(config), torch.tensor([[1, 2, 3]]), torch.tensor([[0, 1, 1]])
    state = model.initial_state(1)
    first = model(x, mask, state=state)  # before the first token padding changes nothing
    torch.testing.assert_close(first.logits[:, 1:], model(x[:, 1:], state=state).logits)
    with pytest.raises(UsageError, match="every step changes the state"):
        model(x, mask, state=first.state)
