"""Beam search: the best continuation is found where it can be counted out, and states follow their beams."""

import itertools

import pytest
import torch

from adder import LanguageModel, LanguageModelConfig, UsageError

CONFIGS = {
    "mamba": {"layer": "mamba"},
    "mamba2": {"layer": "mamba2", "headdim": 4, "d_state": 4},
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def model(request):
    torch.manual_seed(3)
    sizes = {"vocab_size": 4, "d_model": 8, "n_layer": 2, "initializer_range": 1.0}
    return LanguageModel(LanguageModelConfig(**sizes, **request.param))


def score(model, prompt, tokens):
    log_p = model(torch.cat([prompt, tokens], 1)[:, :-1]).logits.log_softmax(-1)
    return log_p[:, prompt.shape[1] - 1 :].gather(2, tokens[:, :, None]).sum().item()


@torch.no_grad()
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_enough_beams_find_the_best_of_all_continuations(model, penalty):
    prompt, stop, length = torch.tensor([[1, 2, 0]]), 3, 3
    found = {}
    for n in range(1, length + 1):
        for tokens in itertools.product(range(4), repeat=n):
            if stop in tokens[:-1] or (n < length and tokens[-1] != stop):
                continue
            found[tokens] = score(model, prompt, torch.tensor([tokens])) / n**penalty
    best = max(found, key=found.get)
    written = model.generate(prompt, length, num_beams=64, length_penalty=penalty, stop=stop)
    assert tuple(written[0, 3:].tolist()) == best


@torch.no_grad()
def test_a_beam_search_scores_what_it_returns_at_least_as_high_as_greedy(model):
    prompt = torch.tensor([[1, 2], [3, 0], [2, 2]])
    greedy = model.generate(prompt, 6, temperature=0.0)
    beams = model.generate(prompt, 6, num_beams=4)
    for row in range(3):
        pair = [
            score(model, prompt[row : row + 1], each[row : row + 1, 2:]) for each in (greedy, beams)
        ]
        assert pair[1] >= pair[0] - 1e-5


def test_rows_do_not_meet(model):
    prompt = torch.tensor([[1, 2], [3, 0], [2, 2]])
    together = model.generate(prompt, 5, num_beams=3, stop=1)
    for row in range(3):
        alone = model.generate(prompt[row : row + 1], 5, num_beams=3, stop=1)[0]
        assert together[row, : len(alone)].tolist() == alone.tolist()
        assert (together[row, len(alone) :] == 1).all()


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 2, "top_k": 3}, "leave the sampling options out"),
    ],
)
def test_wrong_options_are_refused(model, options, message):
    with pytest.raises(UsageError, match=message):
        model.generate(torch.tensor([[1]]), 2, **options)
