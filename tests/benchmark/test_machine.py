"""The machine's limits and the operators' cases: that they are measured, not how large they are."""

import pytest
import torch

from adder.benchmark import operators
from adder.benchmark.machine import last_level_cache, multiply_rate, packed_linear
from adder.cli.info import OPERATORS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_way_to_multiply_is_named_with_its_rate(dtype):
    found = multiply_rate(dtype, 64, 2)
    assert found["rate"] == found["rates"][found["way"]] == max(found["rates"].values())
    assert "torch.mm" in found["rates"]


def test_the_packed_product_is_a_product():
    x, weight = torch.randn(8, 32), torch.randn(16, 32)
    packed = packed_linear(x, weight)
    if packed is None:
        pytest.skip("this PyTorch has no oneDNN")
    torch.testing.assert_close(packed(), x @ weight.T)


def test_a_cache_is_some_bytes_where_the_system_tells():
    assert (last_level_cache() or 1 << 20) >= 1 << 15


def test_every_public_operator_has_a_case():
    cased = {name.split()[0] for name in operators.names()}
    assert cased == OPERATORS.keys()


def test_an_operator_and_its_reference_are_timed_with_their_limit():
    case = next(each for each in operators.cases(1, 32, 16, torch.float32) if each.flops)
    forward, both = operators.measure(case, repeats=1, steps=8)
    assert (forward["pass"], both["pass"]) == ("forward", "forward + backward")
    assert min(forward["seconds"], forward["reference_seconds"], both["seconds"]) > 0
    assert min(forward["alone_seconds"], both["alone_seconds"]) > 0
    row = {"bytes": 100, "flops": 300}
    assert operators.limit(row, 10.0, 100.0) == 10.0
    assert operators.limit(row, 100.0, 10.0) == 30.0
    assert operators.limit(row, 100.0, None) == 1.0


def test_operator_and_reference_are_compared_in_the_same_turns(monkeypatch):
    """Ours is fast when it is alone: that is for the limit, and no part of the ratio."""
    monkeypatch.setattr(
        operators,
        "median_seconds",
        lambda subjects, **_: dict.fromkeys(subjects, 2.0 if len(subjects) > 1 else 1.0),
    )
    case = next(each for each in operators.cases(1, 8, 8, torch.float32) if each.name == "rms_norm")
    for row in operators.measure(case):
        assert (row["seconds"], row["reference_seconds"], row["alone_seconds"]) == (2.0, 2.0, 1.0)


@pytest.mark.parametrize("name", operators.names())
def test_the_reference_of_a_case_says_the_same(name):
    torch.manual_seed(0)
    case = next(each for each in operators.cases(1, 24, 16, torch.float32) if each.name == name)
    ours, theirs = case.operator(*case.inputs), case.reference(*case.inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
