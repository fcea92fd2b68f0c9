import numpy as np
import pytest
import torch

from adder.data.windows import CarriedWindows, RandomWindows
from adder.errors import UsageError

IDS = np.arange(103, dtype=np.int64)
KINDS = [CarriedWindows, RandomWindows]


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_the_next_tokens(kind):
    windows = kind(IDS, 3, 8, seed=1)
    for step in range(20):
        window = windows.window(step)
        assert window.inputs.shape == window.targets.shape == (3, 8)
        assert torch.equal((window.inputs + 1) % IDS.size, window.targets)


@pytest.mark.parametrize("kind", KINDS)
def test_order_depends_on_seed_and_step_only(kind):
    first, second = kind(IDS, 3, 8, seed=1), kind(IDS, 3, 8, seed=1)
    expected = [first.window(step).inputs for step in range(12)]
    for step in reversed(range(12)):
        assert torch.equal(second.window(step).inputs, expected[step])
    other = kind(IDS, 3, 8, seed=2)
    assert any(not torch.equal(other.window(s).inputs, expected[s]) for s in range(12))


def test_carried_rows_continue_until_the_pass_is_over():
    windows = CarriedWindows(IDS, 3, 8, seed=1)
    assert windows.steps_in_pass == 4
    for step in range(12):
        window = windows.window(step)
        assert window.starts == (step % 4 == 0)
        if not window.starts:
            before = windows.window(step - 1)
            assert torch.equal(window.inputs[:, 0], before.targets[:, -1])


def test_a_pass_reads_no_token_twice():
    windows = CarriedWindows(IDS, 3, 8, seed=1)
    seen = torch.cat([windows.window(step).inputs.flatten() for step in range(4)])
    assert seen.unique().numel() == seen.numel() == 96


def test_passes_start_at_different_places():
    windows = CarriedWindows(IDS, 3, 8, seed=1)
    starts = {int(windows.window(4 * number).inputs[0, 0]) for number in range(10)}
    assert len(starts) > 5


def test_random_windows_start_anew_and_stay_inside():
    windows = RandomWindows(IDS, 50, 8, seed=1)
    for step in range(20):
        window = windows.window(step)
        assert window.starts
        assert torch.equal(window.inputs + 1, window.targets)


@pytest.mark.parametrize("kind", KINDS)
def test_shortest_text_makes_a_window(kind):
    windows = kind(IDS[:9], 4, 8, seed=0)
    assert windows.window(5).inputs.shape == (4, 8)
    with pytest.raises(UsageError, match="one window needs 9"):
        kind(IDS[:8], 4, 8, seed=0)


@pytest.mark.parametrize(("rows", "length"), [(0, 8), (3, 0)])
def test_empty_window_is_refused(rows, length):
    with pytest.raises(UsageError, match="rows and a length"):
        RandomWindows(IDS, rows, length, seed=0)
