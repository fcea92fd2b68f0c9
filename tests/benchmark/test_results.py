"""What is worked out from measurements: ratios, shares of the limits, the page and the figure."""

import pytest

from adder.benchmark.contestants import Process, Sample, Task
from adder.benchmark.figure import picture
from adder.benchmark.llama import comparable_precision
from adder.benchmark.model import flops_per_token
from adder.benchmark.plan import Plan
from adder.benchmark.report import page
from adder.benchmark.results import Results, against_length, ratios
from adder.errors import UsageError
from adder.models import LanguageModelConfig

GIGA = 1e9


def contestant(name: str, precision: str = "float32") -> Process:
    one = Process(name, precision, {})
    one.facts = {"weight_bytes": 1000}
    return one


def sample(rate: float, peak: int | None = 10**6) -> Sample:
    return Sample([10], [10 / rate], peak)


@pytest.fixture
def results() -> Results:
    made = Results(Plan(size="tiny").to_dict())
    made.limits = [
        {"limit": kind, "threads": 2, "rate": GIGA, "way": "sum", "rates": {"sum": GIGA}}
        for kind in ("bandwidth", "float32", "bfloat16")
    ]
    for context in (64, 4096):
        for task in (Task("prefill", context, 2), Task("decode", context, 2)):
            made.add(task, contestant("adder"), [sample(100), sample(300), sample(200)])
            made.add(task, contestant("loop"), [sample(50), sample(30), sample(40, None)])
    made.leave_out(Task("prefill", 64, 2), contestant("mambapy"), "mambapy is not installed")
    made.leave_out(None, contestant("transformers"), "transformers is not installed " * 5)
    return made


def test_ratios_are_of_rounds_in_which_both_took_part(results):
    first = ratios(results.models)[0]
    assert (first["peer"], first["times_faster"]) == ("loop", pytest.approx(5))
    assert (first["low"], first["high"]) == (pytest.approx(2), pytest.approx(10))
    assert len(ratios(results.models)) == 4


def test_a_text_in_pieces_is_one_rate_of_its_round():
    made = Results(Plan(size="tiny").to_dict())
    task = Task("prefill", 24 * 2048, 2)
    seconds = [2048 / rate for rate in [50, *[100] * 23]]
    made.add(task, contestant("adder"), [Sample([2048] * 24, seconds, None)])
    made.add(task, contestant("loop"), [sample(10)])
    ours, theirs = made.models
    assert ours["tokens_per_second"] == pytest.approx(24 / (1 / 50 + 23 / 100))
    (row,) = ratios(made.models)
    expected = pytest.approx(ours["tokens_per_second"] / theirs["tokens_per_second"])
    assert (row["times_faster"], row["low"], row["high"]) == (expected, expected, expected)


def test_a_cold_first_round_counts_only_where_it_is_the_only_one():
    made = Results(Plan(size="tiny").to_dict())
    task, cold = Task("prefill", 64, 2), Sample([10], [10.0], None, cold=True)
    made.add(task, contestant("adder"), [sample(100), sample(200), sample(400)])
    made.add(task, contestant("loop"), [cold, sample(10), sample(10)])
    made.add(task, contestant("mambapy"), [cold])
    _, loop, mambapy = made.models
    assert (loop["samples"], loop["cold"], loop["cold_left_out"]) == ([10, 10], False, 1)
    assert (mambapy["samples"], mambapy["cold"], mambapy["cold_left_out"]) == ([1], True, 0)
    ofloop, ofmambapy = ratios(made.models)
    assert (ofloop["low"], ofloop["high"], ofloop["rounds"]) == (20, 40, 2)
    assert (ofmambapy["times_faster"], ofmambapy["rounds"]) == (100, 1)


def test_without_a_common_round_the_medians_are_compared():
    made = Results(Plan(size="tiny").to_dict())
    task, cold = Task("prefill", 4096, 2), Sample([10], [10.0], None, cold=True)
    made.add(task, contestant("adder"), [sample(100)])
    made.add(task, contestant("loop"), [cold, sample(10), sample(20)])
    (row,) = ratios(made.models)
    assert (row["times_faster"], row["rounds"]) == (pytest.approx(100 / 15), 0)


def test_a_peer_is_compared_with_its_like():
    kinds = ["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q4_0", "Q4_K_M", "IQ4_NL"]
    expected = ["float32", "bfloat16", "bfloat16", "int8", "int8", "int4", "int4", "int4"]
    assert [comparable_precision(kind) for kind in kinds] == expected


def test_limits_are_bytes_and_operations(results):
    reading, writing = (
        next(row for row in results.models if row["task"] == task) for task in ("prefill", "decode")
    )
    config = LanguageModelConfig(**results.plan["config"])
    assert reading["limit_tokens_per_second"] == GIGA / flops_per_token(config, head=False)
    # Its weights could be read a million times a second: the matrix products are what limits it.
    assert writing["limit_tokens_per_second"] == GIGA / flops_per_token(config, head=True)
    assert reading["of_limit"] == 200 / reading["limit_tokens_per_second"]


def test_flops_count_the_weights_of_the_products():
    config = LanguageModelConfig(vocab_size=50280, d_model=768, n_layer=24)
    assert flops_per_token(config, head=False) == pytest.approx(179.3e6, rel=1e-3)
    assert flops_per_token(config, head=True) == pytest.approx(2 * 128.3e6, rel=1e-2)


def test_the_page_fits_80_columns_and_says_why(results):
    text = page(results)
    assert max(map(len, text.splitlines())) <= 80
    for words in ("read 4096, 2 threads", "5.00x", "mambapy is not installed", "interrupted"):
        assert words in text


def test_length_and_memory_of_the_longest_over_the_shortest(results):
    (row,) = against_length(results.models)
    assert (row["from"], row["to"], row["time"], row["memory"]) == (64, 4096, 1.0, 1.0)


def test_the_figure_is_a_picture_and_needs_something_to_draw(results):
    assert picture(results).startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="nothing can be drawn"):
        picture(Results(Plan().to_dict()))
