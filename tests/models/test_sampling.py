"""The sampler: what each setting keeps, how draws are distributed, and that rows stay apart."""

import math

import pytest
import torch
from torch import Tensor

from adder.errors import AdderError, UsageError
from adder.models.sampling import Sampler

LOGITS = torch.tensor([[2.0, -1.0, 0.5, 0.5, -3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])


def kept(sampler: Sampler, logits: Tensor, previous: Tensor | None = None) -> list[list[int]]:
    """The ids that can be drawn, row by row."""
    finite = torch.isfinite(sampler.log_probabilities(logits, previous))
    return [row.nonzero()[:, 0].tolist() for row in finite]


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -1.0},
        {"temperature": 1e-7},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"min_p": -0.1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(setting: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(setting))):
        Sampler(**setting)  # type: ignore[arg-type]


def test_temperature_zero_takes_the_largest_logit_and_the_lower_id_of_equals() -> None:
    sampler = Sampler(temperature=0)
    assert sampler.sample(LOGITS).tolist() == [0, 0]
    assert sampler.log_probabilities(LOGITS).exp().tolist() == [[1, 0, 0, 0, 0]] * 2


def test_temperature_divides_the_logits() -> None:
    expected = (LOGITS.double() / 0.7).log_softmax(dim=-1)
    difference = Sampler(temperature=0.7).log_probabilities(LOGITS).double() - expected
    assert difference.abs().max() < 1e-6


def test_the_smallest_temperature_does_not_overflow() -> None:
    huge = torch.tensor([[3e38, -3e38, 2.9e38]])
    assert Sampler(temperature=1e-6).log_probabilities(huge).exp().tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [(1, [[0], [0]]), (2, [[0, 2], [0, 1]]), (5, [[*range(5)]] * 2), (99, [[*range(5)]] * 2)],
)
def test_top_k_keeps_exactly_k_and_the_lower_ids_of_equals(
    top_k: int, expected: list[list[int]]
) -> None:
    assert kept(Sampler(top_k=top_k), LOGITS) == expected


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (1e-9, [0]),
        (0.49, [0]),
        (0.51, [0, 1]),
        (0.74, [0, 1]),
        (0.76, [0, 1, 2]),
        (1.0, [*range(4)]),
    ],
)
def test_top_p_keeps_the_fewest_that_reach_p(top_p: float, expected: list[int]) -> None:
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    assert kept(Sampler(top_p=top_p), logits) == [expected]


def sorted_out(logits: Tensor, top_k: int | None, top_p: float | None) -> list[list[int]]:
    """The ids that stay, by a stable sort of everything in float64."""
    rows = []
    for row in logits.double():
        values, ids = row.sort(descending=True, stable=True)
        values = values[:top_k]
        before = values.softmax(0).cumsum(0) - values.softmax(0)
        stay = before < (2 if top_p is None else top_p)
        rows.append(sorted(ids[: len(values)][stay].tolist()))
    return rows


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 8.0])
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(300, None), (None, 0.7003), (None, 0.0301), (700, 0.5), (5999, 0.9)]
)
def test_a_large_vocabulary_is_cut_where_a_sort_of_it_would_cut(
    spread: float, rounded: bool, top_k: int | None, top_p: float | None
) -> None:
    """Few tokens stay or thousands do, and rounded to bfloat16 many are equal to the last that stays."""
    logits = spread * torch.randn(2, 6000, generator=torch.Generator().manual_seed(1))
    logits = logits.bfloat16().float() if rounded else logits
    expected = sorted_out(logits, top_k, top_p)
    assert kept(Sampler(top_k=top_k, top_p=top_p), logits) == expected


def test_a_draw_is_the_one_from_the_whole_distribution() -> None:
    logits = 2 * torch.randn(64, 3000, generator=torch.Generator().manual_seed(2))
    sampler = Sampler(temperature=0.9, top_k=500, top_p=0.95, min_p=1e-3)
    uniform = torch.rand(64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    cumulative = sampler.log_probabilities(logits).double().exp().cumsum(dim=1)
    expected = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(dim=1)
    assert torch.equal(sampler.sample(logits, torch.Generator().manual_seed(3)), expected)


def test_top_p_of_one_keeps_even_the_least_probable_token() -> None:
    logits = torch.tensor([[0.0, -80.0]])
    assert kept(Sampler(top_p=1.0), logits) == [[0, 1]]


@pytest.mark.parametrize(
    ("min_p", "expected"), [(0.0, [*range(4)]), (0.25, [0, 1, 2]), (0.55, [0]), (1.0, [0])]
)
def test_min_p_is_relative_to_the_most_probable(min_p: float, expected: list[int]) -> None:
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    assert kept(Sampler(min_p=min_p), logits) == [expected]


def test_filters_work_together_in_their_order() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # Of the three that top-k leaves, the first two hold 7/9 of the probability.
    assert kept(Sampler(top_k=3, top_p=0.75), logits) == [[0, 1]]
    assert kept(Sampler(top_k=3, min_p=0.7), logits) == [[0, 1]]


def test_what_stays_keeps_its_proportions() -> None:
    probabilities = Sampler(top_k=2).log_probabilities(torch.tensor([[3.0, 2.0, 1.0]])).exp()[0]
    assert probabilities.sum().item() == pytest.approx(1)
    assert (probabilities[0] / probabilities[1]).item() == pytest.approx(math.e, rel=1e-5)


def test_repetition_penalty_pulls_seen_tokens_down_whatever_their_sign() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.0]])
    penalised = torch.tensor([[1.0, -2.0, 0.5, 0.0]]).log_softmax(dim=-1)
    sampler = Sampler(repetition_penalty=2.0)
    seen = torch.tensor([[0, 1, 3, 0, 0]])
    torch.testing.assert_close(sampler.log_probabilities(logits, seen), penalised)


def test_previous_tokens_may_be_ids_with_padding_or_a_mask() -> None:
    sampler = Sampler(repetition_penalty=1.3)
    ids = torch.tensor([[0, 2, 2], [4, -1, -1]])
    mask = torch.tensor([[True, False, True, False, False], [False, False, False, False, True]])
    by_ids = sampler.log_probabilities(LOGITS, ids)
    assert torch.equal(by_ids, sampler.log_probabilities(LOGITS, mask))
    none = torch.empty(2, 0, dtype=torch.int64)
    plain = sampler.log_probabilities(LOGITS)
    assert torch.equal(sampler.log_probabilities(LOGITS, none), plain)
    assert not torch.equal(by_ids, plain)


def test_draws_follow_the_distribution() -> None:
    rows, sampler = 200_000, Sampler(temperature=0.8, top_k=4)
    logits = torch.tensor([1.0, 0.2, -0.5, 2.0, -9.0]).expand(rows, -1)
    expected = sampler.log_probabilities(logits[:1]).exp()[0]
    counts = torch.bincount(
        sampler.sample(logits, torch.Generator().manual_seed(0)), minlength=5
    ).float()
    deviation = (expected * (1 - expected) / rows).sqrt()
    assert ((counts / rows - expected).abs() <= 5 * deviation).all()
    assert counts[4] == 0


def test_one_seed_gives_one_draw_and_a_global_generator_serves_too() -> None:
    sampler = Sampler()
    draws = [sampler.sample(LOGITS, torch.Generator().manual_seed(5)).tolist() for _ in range(2)]
    assert draws[0] == draws[1]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        assert sampler.sample(LOGITS).tolist() == draws[0]


def test_a_row_does_not_depend_on_the_other_rows() -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, 301)
    sampler = Sampler(temperature=0.9, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.2)
    seen = torch.randint(0, 301, (7, 20))

    def generators(rows: range) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(row) for row in rows]

    together = sampler.sample(logits, generators(range(7)), seen)
    alone = [
        sampler.sample(logits[i : i + 1], generators(range(i, i + 1)), seen[i : i + 1])
        for i in range(7)
    ]
    assert together.tolist() == torch.cat(alone).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_arithmetic_is_float32_whatever_the_logits_are(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5]], dtype=dtype)
    result = Sampler(top_p=0.9).log_probabilities(logits)
    assert result.dtype == torch.float32
    assert torch.equal(result, Sampler(top_p=0.9).log_probabilities(logits.float()))


def test_logits_are_left_as_they_were() -> None:
    logits, before = LOGITS.clone(), LOGITS.clone()
    Sampler(top_k=2, top_p=0.9, min_p=0.1, repetition_penalty=2.0).sample(
        logits, None, torch.tensor([[0], [1]])
    )
    assert torch.equal(logits, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error_that_names_the_row(bad: float) -> None:
    logits = LOGITS.clone()
    logits[1, 2] = bad
    for temperature in (0, 1.0):
        with pytest.raises(AdderError, match="row 1"):
            Sampler(temperature=temperature).sample(logits)


def test_a_row_that_forbids_every_token_is_an_error() -> None:
    with pytest.raises(AdderError, match="forbid every token"):
        Sampler().sample(torch.full((1, 3), -math.inf))


@pytest.mark.parametrize(
    ("logits", "previous"),
    [
        (torch.zeros(3), None),
        (torch.zeros(1, 0), None),
        (torch.zeros(2, 3), torch.tensor([[0]])),
        (torch.zeros(2, 3), torch.tensor([0, 1])),
        (torch.zeros(2, 3), torch.tensor([[3], [0]])),
        (torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.bool)),
    ],
)
def test_shapes_that_disagree_are_refused(logits: Tensor, previous: Tensor | None) -> None:
    with pytest.raises(UsageError):
        Sampler(repetition_penalty=2.0).log_probabilities(logits, previous)


def test_one_generator_for_each_row_or_one_for_all() -> None:
    with pytest.raises(UsageError, match="1 generators were given for 2 rows"):
        Sampler().sample(LOGITS, [torch.Generator()])
