"""Each part of a comparison at a tiny size: figures against brute force, and what does not fit is named."""

import math
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from adder.comparison import quality, speed
from adder.comparison import run as running
from adder.comparison.match import match
from adder.comparison.page import page as html_page
from adder.comparison.plan import (
    PARTS,
    TASKS,
    Plan,
    quick_plan,
    scaled_plan,
    task_source,
    task_training,
)
from adder.comparison.quality import Answering, Found, OutOfTime, Reading, train
from adder.comparison.report import page
from adder.comparison.results import Results
from adder.comparison.run import Run
from adder.comparison.speed import generation_times, training_times
from adder.data.synthetic import make_synthetic
from adder.data.text import Text
from adder.errors import AdderError, UsageError
from adder.models import LanguageModel
from adder.training.presets import find_synthetic_preset
from adder.training.synthetic import Answers

from ..pages import check

FAR = math.inf
TEXT = Text("source", "the quick brown fox jumps over the lazy dog\n" * 200, 8800)


def build(layer: str, vocab_size: int = 32) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(match(layer, vocab_size=vocab_size, d_model=16, n_layer=2).config)


def later(seconds: float) -> float:
    return time.monotonic() + seconds


@pytest.mark.parametrize("layer", ["mamba", "mamba2", "s4", "s4d", "transformer", "lstm", "gru"])
def test_bytes_of_states_and_times_of_tokens(layer: str) -> None:
    model = build(layer)
    found = list(generation_times(model, (3, 10), tokens=2, deadline=FAR))
    assert [context for context, _, _ in found] == [3, 10]
    assert all(seconds > 0 for _, seconds, _ in found)
    sizes = [size for _, _, size in found]
    if layer == "transformer":
        # Keys and values of every token; one number says how many rows of each stream are padding.
        per_token = 2 * 2 * 4 * model.config.d_model
        assert sizes[1] - sizes[0] == 7 * per_token
        assert sizes[0] == pytest.approx(3 * per_token, rel=0.2)
    else:
        with torch.no_grad():
            state = model(torch.zeros(1, 7, dtype=torch.int64), state=model.initial_state(1)).state
        numbers: list[torch.Tensor] = []

        def collect(tree: Any) -> None:
            if isinstance(tree, torch.Tensor):
                numbers.append(tree)
            else:
                for each in tree.values() if isinstance(tree, dict) else tree:
                    collect(each)

        collect(state)
        expected = sum(each.numel() * each.element_size() for each in numbers)
        assert sizes == [expected, expected]


def test_training_times_rise_until_the_time_is_up() -> None:
    model = build("mamba")
    assert [n for n, _ in training_times(model, (4, 8), limit=60, deadline=FAR)] == [4, 8]
    assert all(each.grad is None for each in model.parameters())
    with pytest.raises(OutOfTime, match="8 and more: a step on 4 took"):
        list(training_times(model, (4, 8), limit=0, deadline=FAR))
    with pytest.raises(OutOfTime, match="4 and more: no time left"):
        list(training_times(model, (4, 8), limit=60, deadline=later(-1)))
    with pytest.raises(OutOfTime, match="3 and more: no time left after reading 0 tokens"):
        list(generation_times(model, (3, 8), tokens=1, deadline=later(-1)))


def test_what_is_measured_several_times_is_expected_to_cost_as_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build("gru")
    for took, deadline, fits in ((0.9, 1.8 * 4, False), (0.9, 1.8 * 5, True), (1.1, 3, True)):
        # The next step takes twice as long; one of less than 2 s is made four times.
        monkeypatch.setattr(speed, "_measured", lambda _, took=took: took)
        times = training_times(model, (4, 8), limit=60, deadline=later(deadline - 0.5))
        assert next(times) == (4, took)
        if fits:
            assert next(times) == (8, took)
        else:
            with pytest.raises(OutOfTime, match="8 and more: no time left"):
                next(times)


def test_text_is_learned_and_measured_in_windows_of_their_own() -> None:
    config = replace(
        task_training(replace(Plan(), steps={"text": 40}), "text", 0),
        length=32,
        batch_size=4,
        evaluation_tokens=320,
    )
    subject = Reading(TEXT, config)
    model = build("mamba", 256)
    ((unit, before, asked),) = subject.evaluate(model)
    assert (unit, asked) == ("bits per byte", 320)
    with torch.no_grad():
        ids = torch.from_numpy(subject.ids[:321])
        windows = ids[:320].view(10, 32), ids[1:].view(10, 32)
        logits = model.eval()(windows[0]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[1].flatten())
    assert before == pytest.approx(loss.item() / math.log(2), rel=1e-5)
    (after,) = train(model, subject, config, deadline=FAR)
    assert after.value < before - 1


def test_tasks_are_asked_at_every_length() -> None:
    plan = replace(Plan(), steps={"induction-heads": 2})
    source, lengths = task_source(plan, "induction-heads")
    config = replace(task_training(plan, "induction-heads", 0), evaluation_tokens=64)
    subject = Answering(source, config, lengths)
    found = list(train(build("gru", source.vocab_size), subject, config, deadline=FAR))
    assert [each.unit for each in found] == ["right at 64", "right at 256", "right at 1024"]
    assert all(0 <= each.value <= 1 for each in found)
    assert [each.asked for each in found] == [64] * 3
    with pytest.raises(OutOfTime, match="its 2 steps would take .* s, and 0 s were left"):
        list(train(build("gru", source.vocab_size), subject, config, deadline=later(-1)))


class Clock:
    """time.monotonic, moved by hand: every row costs its length in seconds, or its square."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, power: int = 1):
        self.now, self.rows = 0.0, {}
        monkeypatch.setattr(quality.time, "monotonic", lambda: self.now)

        def ask(_model: Any, _source: Any, rows: int, length: int, _seed: int) -> Answers:
            self.now += rows * length**power
            self.rows[length] = rows
            return Answers(rows, rows // 2, 1.0)

        monkeypatch.setattr(quality, "answer", ask)


def answering(lengths: tuple[int, ...]) -> Answering:
    config = replace(task_training(Plan(), "induction-heads", 0), evaluation_tokens=20_000)
    return Answering(make_synthetic("induction-heads", length=64), config, lengths)


def test_enough_answers_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = list(answering((64, 256, 1024, 4096, 16_384, 65_536)).evaluate(build("gru")))
    assert [each.asked for each in found] == [312, 78, 64, 64, 16, 16]
    assert list(clock.rows.values()) == [312, 78, 64, 64, 16, 16]


@pytest.mark.parametrize(("layer", "power"), [("gru", 1), ("transformer", 2)])
def test_lengths_are_asked_until_the_time_is_up(
    layer: str, power: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, power)
    costs = [rows * length**power for length, rows in ((64, 312), (1024, 64), (16_384, 16))]
    model, subject = build(layer), answering((64, 1024, 16_384))
    found = subject.evaluate(model, sum(costs) + 1.0)
    assert len(list(found)) == 3
    clock.now = 0.0
    found = subject.evaluate(model, sum(costs) - 1.0)
    assert [next(found).unit, next(found).unit] == ["right at 64", "right at 1024"]
    match = f"right at 16,384 tokens and more: 16 rows would take {costs[2]} s, and {costs[2] - 1}"
    with pytest.raises(OutOfTime, match=match):
        next(found)
    assert isinstance(next(subject.evaluate(model, -1.0)), Found)  # the first in any case


def test_scaled_tasks_are_those_of_train() -> None:
    plan = scaled_plan(tasks=("selective-copying",))
    source, lengths = task_source(plan, "selective-copying")
    assert (source.length, source.tokens, source.vocab_size, lengths) == (272, 16, 16, (272,))  # type: ignore[attr-defined]
    preset = find_synthetic_preset("selective-copying", "scaled").training
    config = task_training(plan, "selective-copying", 3)
    assert (config.steps, config.seed, config.length) == (preset["steps"], 3, 272)
    assert config.learning_rate == preset["learning_rate"]
    assert task_source(plan, "induction-heads")[1] == (256, 1024, 4096, 16_384, 65_536)
    assert task_training(plan, "text", 0).length == 256


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(running, "SIZE", {"d_model": 16, "n_layer": 1})
    monkeypatch.setattr(running, "read_source", lambda _: TEXT)
    return Plan(
        layers=("mamba", "transformer"),
        seeds=(0, 1),
        lengths=(8, 16, 32),
        contexts=(4, 8),
        tokens=1,
        steps=dict.fromkeys(TASKS, 2),
    )


def test_a_whole_comparison(tiny: Plan) -> None:
    said: list[tuple[float, str]] = []
    results = Run(tiny, lambda share, words: said.append((share, words))).run()
    assert results.complete
    assert not results.left_out
    assert len(results.training) == 2 * 3
    assert len(results.generation) == 2 * 2
    assert len(results.quality) == 2 * 2 * (1 + 1 + 3)
    assert all(0 <= share <= 1 for share, _ in said)
    assert any("transformer, 32 tokens" in words for _, words in said)
    text = page(results)
    assert max(map(len, text.splitlines())) <= 80
    question = "induction heads, % of 64 answers right at 1,024"
    assert {row["asked"] for row in results.quality if row["unit"] == "right at 1024"} == {64}
    for words in ("bits per byte", question, "beside mamba", "16 tokens"):
        assert words in text
    bits = results.quality_of("mamba", "text", "bits per byte")
    assert f"{sum(bits) / 2:.3f}±{abs(bits[0] - bits[1]) / 2:.3f}" in text
    assert "half of the range of 2 seeds" in text
    tree = results.to_dict()
    assert {row["layer"] for row in tree["exponents"]} == {"mamba", "transformer"}
    assert all(isinstance(row["training"], float) for row in tree["exponents"])
    drawn = html_page(results)
    assert len(check(drawn).named("svg")) == 2 * 3  # each for wide and narrow windows
    assert check(drawn).words.count(f"{question} tokens") == 2  # bars and table


def test_tasks_are_chosen(tiny: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "read_source", lambda _: pytest.fail("no text is learned"))
    plan = replace(tiny, parts=("quality",), tasks=("induction-heads",), seeds=(0,))
    results = Run(plan).run()
    assert {row["task"] for row in results.quality} == {"induction-heads"}


def test_what_does_not_fit_is_named(tiny: Plan) -> None:
    results = Run(replace(tiny, seconds=0.0)).run()
    assert results.complete
    assert not results.training + results.generation + results.quality
    assert {row["part"] for row in results.left_out} == {"training", "generation", *TASKS}
    for shown in (page(results), html_page(results)):
        assert "no time left" in " ".join(shown.split())
    assert len(results.left_out) == 2 * 2 + 2 * 2 * 3


def test_an_interrupt_keeps_what_was_measured(tiny: Plan) -> None:
    def stop(_: float, words: str) -> None:
        if words.startswith("generation"):
            raise KeyboardInterrupt

    run = Run(tiny, stop)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert not run.results.complete
    assert len(run.results.training) == 6
    assert "interrupted" in page(run.results)
    assert "interrupted" in html_page(run.results)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), AdderError("no memory"), OSError("no disk")]
)
def test_an_error_at_a_long_row_keeps_the_shorter_ones(
    tiny: Plan, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(_model: Any, _source: Any, rows: int, length: int, _seed: int) -> Answers:
        if length == 1024:
            raise error
        return Answers(rows, rows, 1.0)

    monkeypatch.setattr(quality, "answer", ask)
    plan = replace(
        tiny, parts=("quality",), tasks=("induction-heads",), layers=("gru",), seeds=(0,)
    )
    run = Run(plan)
    if isinstance(error, AdderError):
        assert [row["why"] for row in run.run().left_out] == ["no memory"]
    else:
        with pytest.raises(type(error)):
            run.run()
    assert [(row["unit"], row["asked"]) for row in run.results.quality] == [
        *(("right at 64", 312), ("right at 256", 78)),
    ]


def test_the_machine_is_the_one_that_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    plan = Plan(layers=("gru",), parts=("training",))
    here = Run(plan).results.machine
    assert Run(replace(plan, device="cuda:1")).results.machine == f"GPU of cuda:1, host {here}"
    assert Run(replace(plan, device="meta")).results.machine == f"meta, host {here}"


def test_names_are_escaped_in_the_page() -> None:
    results = Results({}, machine="<script>")
    results.models.append({"layer": "a<b", "d_model": 8, "parameters": 10, "difference": 0.0})
    assert "<script>" not in html_page(results)
    assert "a&lt;b" in html_page(results)


def test_plans() -> None:
    assert quick_plan(seconds=5.0).seconds == 5.0
    assert quick_plan().layers == ("mamba", "s4", "transformer", "lstm")
    assert Plan().parts == PARTS
    with pytest.raises(UsageError, match="choose mamba"):
        match("rnn", vocab_size=8)
    with pytest.raises(UsageError, match="d_model is 12"):
        match("mamba", vocab_size=8, d_model=12)
