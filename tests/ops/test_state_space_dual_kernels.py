"""state_space_dual at sizes that the C++ kernels cut: into tiles, panels, segments and blocks of heads."""

from functools import partial
from typing import Any

import pytest
import torch
from implementations import bits_for_threads, isas, serving
from inputs import seq_idx_of
from test_state_space_dual import draw
from tolerance import assert_as_good_as_reference, evaluate
from torch import Tensor

from adder.ops import state_space_dual
from adder.ops.state_space_dual.reference import state_space_dual_reference

STEPS = 32  # that are multiplied at once
# (length, heads, groups, channels, states): panels of two vectors and of one, a last vector that is not full, tiles of
# rows that are not; blocks of heads that are not of one size; several segments, the last of them short
SIZES = [
    (STEPS, 2, 1, 64, 128),
    (STEPS + 1, 3, 1, 33, 17),
    (2 * STEPS - 1, 9, 1, 16, 8),
    (70, 10, 2, 8, 16),
    (133, 5, 1, 48, 9),
    (40, 4, 4, 130, 3),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("length", "heads", "groups", "channels", "states"), SIZES)
@pytest.mark.usefixtures("served", "poisoned")
def test_sizes_of_models(
    length: int, heads: int, groups: int, channels: int, states: int, dtype: torch.dtype
) -> None:
    inputs = draw(1, length, heads, groups, channels, states, dtype, per_channel=length % 2 == 0)
    assert_as_good_as_reference(state_space_dual, state_space_dual_reference, inputs)


@pytest.mark.parametrize("absent", [["z", "state"], ["D", "dt_bias"]])
@pytest.mark.parametrize("chunk", [STEPS, 50, 64, 1000])
@pytest.mark.usefixtures("served", "poisoned")
def test_chunks_of_several_segments(chunk: int, absent: list[str]) -> None:
    """The states between two saved ones are computed again; packed sequences start anywhere between them."""
    inputs = {**draw(2, 150, 5, 1, 20, 12, torch.float64), **dict.fromkeys(absent)}
    function = partial(state_space_dual, chunk_size=chunk)
    assert_as_good_as_reference(function, state_space_dual_reference, inputs)
    cuts = [[1, 31, 32, 1, 40, 45], [3, 61, 86]]
    inputs["seq_idx"] = torch.cat([seq_idx_of(1, each) for each in cuts])
    assert_as_good_as_reference(function, state_space_dual_reference, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("length", [1, 3, 4, 5])
@pytest.mark.usefixtures("served", "poisoned")
def test_a_few_steps_without_gradients(length: int, given: bool, dtype: torch.dtype) -> None:
    """So few are not multiplied as matrices; packed, each step may be a sequence."""
    inputs = draw(2, length, 6, 2, 19, 21, dtype, per_channel=given)
    inputs["state"] = inputs["state"] if given else None
    for seq_idx in (None, torch.arange(length, dtype=torch.int32).div(2).int().repeat(2, 1)):
        with torch.no_grad():
            got = state_space_dual(**inputs, seq_idx=seq_idx)
            expected = state_space_dual_reference(**_widened(inputs), seq_idx=seq_idx)
        for each, wide in zip(got, expected, strict=True):
            eps = torch.finfo(each.dtype).eps
            # a sum over n numbers, and a rounding to the type of the output
            assert (each.double() - wide).abs().max() <= 21 * eps * wide.abs().max()


def _widened(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() if isinstance(v, Tensor) else v for k, v in inputs.items()}


@pytest.mark.parametrize("name", ["x", "dt", "B", "C", "z"])
@pytest.mark.usefixtures("served")
def test_a_nan_reaches_what_it_reaches_in_the_recurrence(name: str) -> None:
    """In outputs the steps behind it, in gradients those before it, in its segment and beyond."""
    inputs = draw(1, 100, 2, 1, 5, 6, torch.float64)
    inputs[name][:, 45] = torch.nan
    got, expected = (
        evaluate(each, inputs) for each in (state_space_dual, state_space_dual_reference)
    )
    for each in got:
        assert torch.equal(got[each].isnan(), expected[each].isnan()), each


@pytest.mark.parametrize("isa", isas())
def test_threads_do_not_change_bits(isa: str) -> None:
    inputs = draw(2, 150, 10, 2, 20, 12)
    with serving(f"cpu {isa}"):
        bits_for_threads(lambda: evaluate(state_space_dual, inputs))


@pytest.mark.parametrize("isa", isas())
def test_heads_do_not_see_each_other(isa: str) -> None:
    inputs = {**draw(1, 100, 7, 1, 20, 12), "dt_softplus": True}
    with serving(f"cpu {isa}"):
        y, state = state_space_dual(**inputs)
        by_head = {"x": 2, "dt": 2, "A": 0, "D": 0, "z": 2, "dt_bias": 0, "state": 1}
        one = {k: v.narrow(by_head[k], 3, 1) if k in by_head else v for k, v in inputs.items()}
        y_of_one, state_of_one = state_space_dual(**one)
    assert torch.equal(y_of_one, y[:, :, 3:4])
    assert torch.equal(state_of_one, state[:, 3:4])


@pytest.mark.usefixtures("served")
def test_a_chunk_far_longer_than_the_sequence() -> None:
    inputs = draw(1, 40, 2, 1, 3, 4)
    got, expected = (
        evaluate(partial(state_space_dual, chunk_size=size), inputs) for size in (2**63 - 1, 40)
    )
    for name in expected:
        assert torch.equal(got[name], expected[name]), name
