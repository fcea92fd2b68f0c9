"""States are trees of tensors: flattened, restored, and refused when they do not fit."""

import pytest
import torch

from adder.errors import UsageError
from adder.layers.state import detach_state, flatten_state, map_state, unflatten_state


def tree():
    return ({"conv": torch.zeros(2, 3), "ssm": torch.ones(2, 4)}, {"h": torch.full((2, 1), 2.0)})


def test_flatten_names_every_tensor_by_its_path():
    assert list(flatten_state(tree())) == ["0.conv", "0.ssm", "1.h"]


def test_unflatten_is_the_inverse():
    restored = unflatten_state(flatten_state(tree()), tree())
    assert isinstance(restored, tuple)
    assert list(restored[0]) == ["conv", "ssm"]
    assert torch.equal(restored[1]["h"], tree()[1]["h"])


def test_map_reaches_every_tensor_and_keeps_the_form():
    rows = map_state(lambda x: x[:1], tree())
    assert [tuple(each.shape) for each in flatten_state(rows).values()] == [(1, 3), (1, 4), (1, 1)]


def test_detach_cuts_the_graph():
    x = torch.ones(2, requires_grad=True)
    assert not detach_state({"h": 2 * x})["h"].requires_grad


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda flat: flat.pop("0.ssm"), "0.ssm is missing"),
        (lambda flat: flat.update(extra=torch.ones(1)), "extra is not known here"),
        (lambda flat: flat.update({"1.h": torch.ones(3, 1)}), r"1.h is \(3, 1\)"),
        (lambda flat: flat.update({"1.h": torch.ones(2, 1, dtype=torch.float64)}), "float64"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    flat = flatten_state(tree())
    change(flat)
    with pytest.raises(UsageError, match=message):
        unflatten_state(flat, tree())
