import numpy as np
import pytest
import torch

from adder.data.sequences import Batches, Sequences, held_out
from adder.errors import UsageError


def sequences(lengths=(3, 1, 2), **more) -> Sequences:
    """Sequence i holds 10 i, 10 i + 1, ..."""
    values = np.concatenate([10 * i + np.arange(n) for i, n in enumerate(lengths)])[:, None]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Sequences(values.astype(np.uint8), offsets, np.arange(len(lengths)) % 2, **more)


def test_a_batch_is_padded_at_its_ends():
    batch = sequences(scale=0.5).batch(np.array([0, 2]))
    assert batch.inputs[..., 0].tolist() == [[0.0, 0.5, 1.0], [10.0, 10.5, 0.0]]
    assert batch.inputs.dtype == torch.float32
    assert batch.lengths.tolist() == [3, 2]
    assert batch.labels.tolist() == [0, 0]


def test_equal_lengths_need_no_padding_and_tokens_no_scale():
    batch = sequences((2, 2), tokens=True).batch(np.array([1, 0]))
    assert batch.lengths is None
    assert batch.inputs.tolist() == [[10, 11], [0, 1]]
    assert batch.inputs.dtype == torch.int64


def test_parts_are_equal_shares_no_longer_than_need_be():
    batch = sequences((3, 1, 2, 1)).batch(np.arange(4))
    one, other = batch.parts(2, torch.device("cpu"))
    assert [tuple(t.shape) for t in one] == [(2, 3, 1), (2,), (2,)]
    assert other[0][..., 0].tolist() == [[20, 21], [30, 0]]
    assert other[2].tolist() == [2, 1]


def test_statistics_are_of_the_chosen_steps_alone():
    data = sequences((3, 2, 4), scale=0.5)
    mean, deviation = data.statistics(np.array([0, 2]))
    chosen = np.array([0, 1, 2, 20, 21, 22, 23]) / 2
    assert mean == pytest.approx((chosen.mean(),))
    assert deviation == pytest.approx((chosen.std(),))
    constant = Sequences(np.full((4, 1), 0.1), np.array([0, 2, 4]), np.array([0, 1]))
    assert constant.statistics(np.arange(2)) == (pytest.approx((0.1,)), (1.0,))


def test_every_sequence_once_sorted_by_length():
    data = sequences((3, 1, 2, 5, 4))
    seen = list(data.in_batches(np.arange(5), rows=2))
    assert [batch.inputs.shape[1] for batch in seen] == [2, 4, 5]
    firsts = [row[0, 0].item() for batch in seen for row in batch.inputs]
    assert sorted(firsts) == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("buckets", [1, 3])
def test_batches_are_a_pure_function_of_seed_and_step(buckets):
    lengths = np.arange(100, 0, -1)
    indices = np.arange(5, 100)

    def rows(seed, steps):
        batches = Batches(indices, lengths, 8, seed, buckets)
        return [batches.rows_of(step).tolist() for step in steps]

    forward = rows(1, range(25))
    assert rows(1, reversed(range(25))) == forward[::-1]
    assert rows(2, range(25)) != forward
    epoch = [i for batch in forward[:11] for i in batch]
    assert len(set(epoch)) == 88
    assert set(epoch) <= set(indices.tolist())
    assert forward[11:22] != forward[:11]


def test_buckets_bring_rows_of_one_length_together():
    lengths = np.random.default_rng(0).permutation(96)

    def span(buckets):
        batches = Batches(np.arange(96), lengths, 8, 0, buckets)
        return sum(int(np.ptp(lengths[batches.rows_of(step)])) for step in range(12))

    assert span(12) == 12 * 7
    assert span(4) < span(1) / 2


def test_more_rows_than_sequences_is_refused():
    with pytest.raises(UsageError, match="a step needs 6 sequences, and 5 are there"):
        Batches(np.arange(5), np.ones(5, dtype=np.int64), 6, 0)


def test_what_is_held_out_depends_on_the_seed():
    training, held = held_out(100, 0.1, 3)
    assert len(held) == 10
    assert sorted([*training, *held]) == list(range(100))
    assert held.tolist() == held_out(100, 0.1, 3)[1].tolist()
    assert held.tolist() != held_out(100, 0.1, 4)[1].tolist()
    assert len(held_out(5, 0.0, 0)[1]) == 0
    with pytest.raises(UsageError, match="0.1 of 4 sequences for validation leaves 0"):
        held_out(4, 0.1, 0)
