"""Which measurements a plan asks for, and what is left out rather than waited for."""

import pytest

from adder.benchmark.contestants import CannotMeasure, Contestant, Sample, Task
from adder.benchmark.plan import Plan
from adder.benchmark.results import Results
from adder.benchmark.run import Run

TINY = {"size": "tiny", "contexts": (64, 512, 4096), "threads": (2, 1), "rounds": 3}


class Steady(Contestant):
    """Reads so many tokens a second, and keeps what it was asked."""

    def __init__(self, rate: float, continues: bool = False):
        super().__init__("adder" if continues else "peer", "float32")
        self.rate, self.continues, self.asked = rate, continues, []
        self.facts = {"weight_bytes": 4, "decodes_by": "state"}

    def launch(self) -> None: ...

    def start(self) -> None: ...

    def close(self) -> None: ...

    def measure(self, task: Task, start: int) -> Sample:
        if task.kind == "train":
            raise CannotMeasure("it does not train")
        self.asked.append((task.kind, task.context, start))
        tokens = task.context - start if task.kind == "prefill" else 1
        return Sample([tokens], [tokens / self.rate], None)


def compete(plan: Plan, *contestants: Contestant) -> Results:
    results = Results(plan.to_dict())
    run = Run(plan, results, lambda _: None)
    for task in plan.reading_tasks() + plan.training_tasks():
        run._compete(task, list(contestants))
    return results


def test_every_context_with_all_threads_one_with_fewer():
    tasks = Plan(**TINY).reading_tasks()
    assert {task.context for task in tasks if task.threads == 2} == {64, 512, 4096}
    assert {task.context for task in tasks if task.threads == 1} == {512}
    assert [task.batch for task in tasks if task.batch > 1] == [16]
    only = Plan(**TINY, sections=frozenset({"prefill"})).reading_tasks()
    assert {task.kind for task in only} == {"prefill"}


def test_a_long_text_is_read_on_by_who_can_and_read_once():
    ours, peer = Steady(1000, continues=True), Steady(1000)
    compete(Plan(**TINY), ours, peer)
    assert [ask for ask in ours.asked if ask[:2] == ("prefill", 4096)] == [("prefill", 4096, 512)]
    assert [ask for ask in peer.asked if ask[:2] == ("prefill", 4096)] == [("prefill", 4096, 0)] * 3


def test_what_would_take_too_long_is_left_out_with_its_reason():
    slow = Steady(100)
    results = compete(Plan(**TINY, limit=11), slow)
    assert ("prefill", 4096, 0) not in slow.asked
    (row,) = [row for row in results.left_out if row["task"] == "prefill"]
    assert row["why"] == "would take about 41 s, and --limit is 11"
    assert row["context"] == 4096


def test_rounds_end_where_the_time_does():
    slow = Steady(100)
    compete(Plan(**TINY, limit=11), slow)
    assert slow.asked.count(("prefill", 64, 0)) == 3
    assert slow.asked.count(("prefill", 512, 0)) == 2  # once for each number of threads


def test_an_error_is_told_and_the_others_go_on():
    results = compete(Plan(**TINY), Steady(1000))
    assert {row["why"] for row in results.left_out if row["task"] == "train"} == {
        "it does not train"
    }
    assert any(row["task"] == "decode" for row in results.models)


@pytest.mark.parametrize("sections", [{"limits"}, {"operators"}, {"prefill"}, {"train", "decode"}])
def test_the_steps_told_are_those_shown(sections, monkeypatch):
    plan = Plan(**TINY, sections=frozenset(sections))
    shown: list[str] = []
    run = Run(plan, Results(plan.to_dict()), shown.append)
    monkeypatch.setattr(Plan, "contestants", lambda *_: [Steady(1e6)])
    answer = {"rate": 1.0, "way": "", "rates": {}, "passes": []}
    for name, replacement in (
        ("launch", lambda _: None),
        ("start", lambda _: None),
        ("ask", lambda *_: answer),
    ):
        monkeypatch.setattr(f"adder.benchmark.run.Process.{name}", replacement)
    run.run()
    assert len(shown) == run.steps()
