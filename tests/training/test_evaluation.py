import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from adder.errors import UsageError
from adder.models.config import LanguageModelConfig
from adder.models.language_model import LanguageModel
from adder.training.evaluation import Evaluation, evaluate_text


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LanguageModel(LanguageModelConfig(vocab_size=7, d_model=16, n_layer=2, d_state=4))


IDS = np.random.default_rng(0).integers(7, size=101)


def test_one_stream_is_one_pass_over_the_text(model):
    ids = torch.from_numpy(IDS)
    with torch.no_grad():
        logits = model(ids[None, :-1]).logits[0]
    expected = F.cross_entropy(logits.double(), ids[1:], reduction="sum").item()
    result = evaluate_text(model, IDS, length=1000)
    assert result.tokens == 100
    assert result.nats == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("length", [1, 7, 33, 100])
def test_the_result_does_not_depend_on_the_window(model, length):
    whole = evaluate_text(model, IDS, length=1000)
    assert evaluate_text(model, IDS, length=length).nats == pytest.approx(whole.nats, rel=1e-5)


def test_rows_read_stretches_from_no_state(model):
    result = evaluate_text(model, IDS, length=10, rows=3)
    assert result.tokens == 99
    parts = [evaluate_text(model, IDS[33 * row : 33 * row + 34]) for row in range(3)]
    assert result.nats == pytest.approx(sum(part.nats for part in parts), rel=1e-5)


def test_the_mode_of_the_model_is_kept(model):
    model.train()
    evaluate_text(model, IDS)
    assert model.training


@pytest.mark.parametrize(("size", "rows"), [(1, 1), (0, 1), (3, 4)])
def test_too_short_text_is_refused(model, size, rows):
    with pytest.raises(UsageError, match="too few"):
        evaluate_text(model, IDS[:size], rows=rows)


def test_figures_of_an_evaluation():
    result = Evaluation(nats=100 * math.log(4), tokens=100)
    assert result.loss == pytest.approx(math.log(4))
    assert result.perplexity == pytest.approx(4)
    assert result.bits_per(50) == pytest.approx(4)
    assert Evaluation(nats=1e9, tokens=1).perplexity == math.inf
