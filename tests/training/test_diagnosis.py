import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adder.training.diagnosis import find_nonfinite


class Root(nn.Module):
    """sqrt: its output is NaN below 0, and its gradient infinite at 0."""

    def forward(self, x):
        return {"y": [x.sqrt()]}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.root = Root()

    def forward(self, x):
        return self.root(self.first(x))["y"][0]


def net(bias: float) -> Net:
    model = Net()
    nn.init.zeros_(model.first.weight)
    nn.init.constant_(model.first.bias, bias)
    return model


def find(model, x, state=None):
    return find_nonfinite(model, state, lambda: (model(x).sum(), None))


def test_finite_all_over():
    assert find(net(1.0), torch.ones(1, 2)) is None


def test_parameter_comes_before_everything():
    model = net(float("nan"))
    assert find(model, torch.ones(1, 2)) == "the parameter first.bias, which holds nan"


def test_carried_state():
    state = ({"ssm": torch.tensor([float("-inf")])},)
    assert find(net(1.0), torch.ones(1, 2), state) == "the carried state 0.ssm, which holds inf"


@pytest.mark.parametrize(
    ("x", "bias", "place"),
    [
        (float("nan"), 1.0, "the input of the model (Net), which holds nan"),
        (1.0, -1.0, "the output of root (Root), which holds nan"),
        (1.0, 0.0, "the gradient of first.bias, which holds inf"),
    ],
)
def test_first_place_is_named(x, bias, place):
    assert find(net(bias), torch.full((1, 2), x)) == place


def test_loss_itself():
    model = net(1.0)
    place = find_nonfinite(
        model, None, lambda: (F.relu(model(torch.ones(1, 2))).sum().log() * 0 + float("inf"), None)
    )
    assert place == "the loss itself, which is inf, from finite logits"


def test_hooks_are_removed():
    model = net(-1.0)
    find(model, torch.ones(1, 2))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
