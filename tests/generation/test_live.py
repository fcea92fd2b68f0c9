import pytest
import torch

from adder.errors import UsageError
from adder.generation.live import LiveClassifier
from adder.models import SequenceClassifier, SequenceClassifierConfig


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = SequenceClassifierConfig(
        classes=2, labels=("no", "yes"), d_input=1, d_model=8, n_layer=2, d_state=4
    )
    return SequenceClassifier(config).double().eval()


def test_it_stands_where_the_whole_sequence_does(model):
    x = torch.randn(1, 20, 1, dtype=torch.float64)
    live = LiveClassifier(model)
    for piece in x[0].split([1, 7, 12]):
        live.feed(piece.numpy())
    expected = model(x).logits[0].softmax(-1)
    torch.testing.assert_close(live.probabilities, expected, rtol=1e-10, atol=0)
    assert live.position == 20
    assert live.label == ("no", "yes")[int(expected.argmax())]
    assert live.probability == pytest.approx(float(expected.detach().max()))


def test_before_the_first_step_there_is_no_class(model):
    with pytest.raises(UsageError, match="has read nothing yet"):
        _ = LiveClassifier(model).label


def test_what_is_refused_changes_nothing(model):
    live = LiveClassifier(model)
    live.feed(torch.ones(3, 1))
    before = live.probabilities
    with pytest.raises(UsageError, match="inputs has shape"):
        live.feed(torch.ones(3, 2))
    assert (live.position, live.probabilities is before) == (3, True)
