"""Floors: the least time that the device allows, as docs of an H200 state it; and how times are taken."""

import pytest
import torch

from adder.benchmark.gpu import clock, model_work
from adder.benchmark.gpu.cases import scans
from adder.benchmark.gpu.clock import HostClock, Times
from adder.benchmark.gpu.jobs import Shelf
from adder.benchmark.gpu.limits import Work
from adder.benchmark.gpu.made import make_model, transformer_of
from adder.benchmark.gpu.plan import MODELS, Plan
from adder.benchmark.gpu.results import best, ratios
from adder.models import LanguageModelConfig

from .tiny import MODEL, tiny

H200 = {"copy": 4.25e12, "exponentials": 4.17e12, "bfloat16": 790e12, "float32": 50e12}
BILLIONS = LanguageModelConfig(**MODELS["2.8B"])


def test_the_floor_is_the_larger_time():
    assert Work(bytes=4.25e12, exponentials=8.34e12).floor(H200) == (2.0, "exponentials")
    assert Work(bytes=4.25e12, flops=50e12, type="float32").floor(H200) == (1.0, "copy")
    assert Work().floor(H200) is None
    assert Work(bytes=1.0, flops=1.0).floor({"copy": 1.0}) is None


def test_the_floor_of_the_scan():
    """0.257 ms for 8 x 2048 x 4096, n 16: exponentials forward, and twice as many in both passes."""
    plan = tiny(states=16)
    (case,) = scans(plan, {}, (8, 2048, 4096))
    seconds, by = case.work(3 * 8 * 2048 * 4096 * 2, 8 * 2048 * 4096 * 2, False).floor(H200)
    assert (round(1e3 * seconds, 3), by) == (0.257, "exponentials")
    assert case.work(0, 0, True).floor(H200)[0] == 2 * seconds


def test_the_floors_of_a_model_of_2_8_billion():
    """1.31 ms for a token: 5.55 GB of weights; a prompt of 2048 tokens is bound by its products."""
    weights = 2 * BILLIONS.parameter_count()
    state = model_work.state_bytes(BILLIONS, 1)
    seconds, by = model_work.of_token(BILLIONS, weights, state, 1).floor(H200)
    assert (round(1e3 * seconds, 2), by) == (1.31, "copy")
    assert model_work.of_prompt(BILLIONS, weights, 2048).floor(H200)[1] == "bfloat16"


def test_the_states_counted_are_those_of_a_model():
    config = LanguageModelConfig(**MODEL)
    model = make_model(config, torch.bfloat16, torch.device("cpu"))
    state = model.initial_state(3)
    assert model_work.bytes_of(state) == model_work.state_bytes(config, 3)


def test_a_model_made_without_drawing_on_the_host_has_usual_numbers():
    model = make_model(LanguageModelConfig(**MODEL), torch.float32, torch.device("cpu"))
    logits = model(torch.randint(16, (2, 9))).logits
    assert bool(logits.isfinite().all())
    assert 1e-3 < float(logits.std()) < 10
    assert not any(each.requires_grad for each in model.parameters())


@pytest.mark.parametrize("size", MODELS)
def test_the_transformer_beside_a_model_is_of_its_size(size):
    config = LanguageModelConfig(**MODELS[size])
    counts = config.parameter_count(), transformer_of(config).parameter_count()
    assert counts[1] == pytest.approx(counts[0], rel=0.06)


def test_calls_take_turns_and_the_first_do_not_count(monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(clock, "MOST_ROUNDS", 7)
    times = HostClock(torch.device("cpu"), budget=10.0).times(
        [lambda k=k: asked.append(k) for k in range(3)]
    )
    assert len(times.seconds) == 7
    assert asked[-7:] == [0, 1, 2, 0, 1, 2, 0]


def test_times_are_told_by_their_median():
    told = Times(tuple(float(k) for k in range(11))).to_dict("graph_")
    assert told == {"graph_seconds": 5.0, "graph_low": 1.0, "graph_high": 9.0, "graph_rounds": 11}


def test_times_of_calls_that_were_timed_together():
    assert Times((2.0, 4.0)).of_each(2).seconds == (1.0, 2.0)


def test_a_long_call_is_timed_twice(monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(clock, "LONG_SECONDS", -1.0)
    times = HostClock(torch.device("cpu")).times([lambda: asked.append(0), lambda: asked.append(1)])
    assert len(times.seconds) == 2
    assert asked == [0, 1, 0]  # the first does not count


def row(subject, **seconds):
    return {
        "section": "s",
        "name": "n",
        "size": "",
        "pass": "forward",
        "subject": subject,
    } | seconds


def test_graphs_are_compared_with_graphs_alone():
    ours = row("adder", seconds=2.0, graph_seconds=1.0)
    assert best(ours) == 1.0
    compared = ratios([ours, row("a", seconds=6.0), row("b", seconds=6.0, graph_seconds=4.0)])
    assert [each["times_faster"] for each in compared] == [3.0, 4.0]


def test_the_shelf_holds_one_thing():
    shelf, made = Shelf(), []

    def make(name: str) -> str:
        assert shelf.thing is None  # both might not fit
        made.append(name)
        return name

    for name in "aabba":
        assert shelf.take(name, lambda name=name: make(name)) == name
    assert made == ["a", "b", "a"]


def test_the_default_plan_is_what_is_promised():
    plan = Plan(device=torch.device("cpu"))
    assert plan.lengths[0] == 512
    assert plan.lengths[-1] == plan.long[-1] == 1 << 20
    assert plan.streams == (1, 16, 64, 128)
    assert list(plan.models) == ["130M", "1.4B", "2.8B"]
