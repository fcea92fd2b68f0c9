"""Attention, LSTM and GRU as layers: pieces = whole, packing, padding, and PyTorch's own results."""

import doctest
import importlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adder.errors import UsageError
from adder.layers import Attention, Recurrent, map_state

EXACT = {"rtol": 1e-11, "atol": 1e-12}
LAYERS = {
    "attention": lambda: Attention(8, 2, bias=True),
    "lstm": lambda: Recurrent(8, "lstm", 6),
    "gru": lambda: Recurrent(8, "gru", bias=True),
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def layer(request):
    torch.manual_seed(0)
    return request.param().double()


def signal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("cuts", [(1,), (3, 4, 9), tuple(range(1, 13))])
def test_a_sequence_in_pieces_equals_the_whole(layer, cuts):
    u, state, parts = signal(2, 13, 8), layer.initial_state(2), []
    for piece in u.tensor_split(cuts, dim=1):
        y, state = layer(piece, state)
        parts.append(y)
    whole, none = layer(u)
    assert none is None
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, **EXACT)


def test_a_step_sees_nothing_of_what_comes_after_it(layer):
    u = signal(1, 9, 8)
    changed = torch.cat([u[:, :5], signal(1, 4, 8, seed=2)], dim=1)
    assert torch.equal(layer(u)[0][:, :5], layer(changed)[0][:, :5])


def test_gradients_through_states(layer):
    state = layer(signal(2, 3, 8), layer.initial_state(2))[1]
    real = {name: each for name, each in state.items() if each.is_floating_point()}
    whole = {name: each for name, each in state.items() if name not in real}

    def run(u, *tensors):
        y, after = layer(u, {**dict(zip(real, tensors, strict=True)), **whole})
        return y, *(after[name] for name in real)

    inputs = [each.detach().requires_grad_() for each in (signal(2, 2, 8), *real.values())]
    assert torch.autograd.gradcheck(run, inputs)


def test_attention_is_that_of_its_equation():
    torch.manual_seed(0)
    layer, u = Attention(8, 2).double(), signal(1, 6, 8)
    q, k, v = layer.in_proj(u)[0].view(6, 3, 2, 4).unbind(1)
    y = torch.zeros(6, 2, 4).double()
    for h in range(2):
        for t in range(6):
            scores = []
            for s in range(t + 1):
                # A rotation of both by their positions is one of the query by their distance.
                turned = q[t, h].clone()
                for i in range(2):
                    angle = torch.tensor((t - s) * 10000.0 ** (-i / 2), dtype=torch.float64)
                    a, b = q[t, h, i], q[t, h, i + 2]
                    turned[i] = a * angle.cos() - b * angle.sin()
                    turned[i + 2] = b * angle.cos() + a * angle.sin()
                scores.append(turned @ k[s, h] / 2)
            y[t, h] = torch.stack(scores).softmax(0) @ v[: t + 1, h]
    torch.testing.assert_close(layer(u)[0], layer.out_proj(y.reshape(1, 6, 8)), **EXACT)


def test_far_positions_keep_their_digits():
    torch.manual_seed(0)
    layer, u = Attention(8, 2), signal(1, 3, 8).float()
    state = layer.initial_state(1)
    far = 1_000_000
    state["k"], state["v"] = (torch.zeros(1, far, 2, 4) for _ in range(2))
    state["first"] = torch.tensor([far])
    torch.testing.assert_close(layer(u, state)[0], layer(u)[0], rtol=1e-5, atol=1e-5)


def test_packed_sequences_do_not_meet_in_attention():
    torch.manual_seed(0)
    layer, u = Attention(8, 2).double(), signal(2, 9, 8)
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [4] * 9], dtype=torch.int32)
    before = layer(signal(2, 2, 8, seed=3), layer.initial_state(2))[1]
    y, after = layer(u, before, seq_idx=seq_idx)
    for row, number in ((0, 0), (0, 1), (0, 2), (1, 4)):
        kept = seq_idx[row] == number
        start = map_state(lambda each, row=row: each[row : row + 1], before)
        start = start if number in (0, 4) else layer.initial_state(1)
        alone, end = layer(u[row : row + 1, kept], start)
        torch.testing.assert_close(y[row, kept], alone[0], **EXACT)
    more = signal(2, 3, 8, seed=4)
    torch.testing.assert_close(layer(more, after)[0][1:], layer(more[1:], end)[0], **EXACT)
    last = layer(torch.cat([u[:1, 5:], more[:1]], 1))[0][:, 4:]
    torch.testing.assert_close(layer(more, after)[0][:1], last, **EXACT)


def test_padding_is_passed_over_by_attention():
    torch.manual_seed(0)
    layer, u, padding = Attention(8, 2).double(), signal(3, 6, 8), torch.tensor([2, 0, 6])
    y, state = layer(u, layer.initial_state(3), padding=padding)
    more = signal(3, 2, 8, seed=2)
    again, _ = layer(more, state)
    for row in range(3):
        whole = layer(torch.cat([u[row, padding[row] :], more[row]])[None])[0][0]
        mine = torch.cat([y[row, padding[row] :], again[row]])
        torch.testing.assert_close(mine, whole, **EXACT)
    assert not y.isnan().any()
    with pytest.raises(UsageError, match="padding in front of a row takes a state without tokens"):
        layer(u, state, padding=torch.tensor([1, 0, 0]))


def test_the_cells_are_pytorchs():
    torch.manual_seed(0)
    u = signal(2, 5, 8)
    for name, kind in (("lstm", nn.LSTM), ("gru", nn.GRU)):
        layer = Recurrent(8, name, 6).double()
        cell = kind(8, 6, batch_first=True).double()
        cell.load_state_dict(layer.cell.state_dict())
        expected = F.linear(cell(u)[0], layer.out_proj.weight)
        torch.testing.assert_close(layer(u)[0], expected, **EXACT)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Attention(8, 3), "n_heads 3 must divide d_model 8"),
        (lambda: Attention(6, 2), "heads of an even width"),
        (lambda: Attention(8, 2, rope_base=0.5), "rope_base 0.5"),
        (lambda: Recurrent(8, "rnn"), "cell is 'rnn', expected lstm or gru"),
        (lambda: Recurrent(8, "gru", 0), "hidden_size 0"),
        (
            lambda: Recurrent(8, "gru")(torch.zeros(1, 2, 8), padding=torch.zeros(1)),
            "padding is not",
        ),
        (
            lambda: Recurrent(8, "gru")(torch.zeros(1, 2, 8), seq_idx=torch.zeros(1)),
            "seq_idx is not",
        ),
        (lambda: Attention(8, 2)(torch.zeros(1, 2, 8), {"k": torch.zeros(1)}), "the state holds k"),
    ],
)
def test_what_is_not_served_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()


@pytest.mark.parametrize("module", ["attention", "recurrent"])
def test_the_examples_run(module):
    assert doctest.testmod(importlib.import_module(f"adder.layers.{module}")).failed == 0
