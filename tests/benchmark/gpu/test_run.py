"""A whole run at tiny sizes on a CPU, and what becomes of measurements that cannot be had."""

import json

import pytest
import torch

from adder.benchmark.contestants import CannotMeasure
from adder.benchmark.gpu import lengths
from adder.benchmark.gpu.clock import HostClock
from adder.benchmark.gpu.figure import picture
from adder.benchmark.gpu.jobs import Job
from adder.benchmark.gpu.plan import SECTIONS
from adder.benchmark.gpu.report import page
from adder.benchmark.gpu.results import Results
from adder.benchmark.gpu.run import Run

from .tiny import tiny


def run(jobs=None, now=None, **changes) -> Results:
    plan = tiny(**changes)
    results = Results(plan.to_dict())
    clock = {} if now is None else {"now": now}
    Run(plan, results, lambda _: None, jobs=jobs, **clock).run()
    return results


@pytest.fixture(scope="module")
def whole() -> Results:
    return run()


def test_every_section_has_its_rows_and_nothing_is_left_out(whole):
    assert whole.complete
    assert whole.left_out == []
    assert {row["limit"] for row in whole.limits} == {"copy", "exponentials", "bfloat16", "float32"}
    assert {row["section"] for row in whole.rows} == {"operators", "lengths", "block", "models"}
    names = {row["name"] for row in whole.of("operators") if row["subject"] == "adder"}
    assert names == {
        *("selective_scan", "state_space_dual", "short_convolution", "rms_norm", "gated_norm"),
        *("diagonal_kernel", "dplr_kernel", "long_convolution"),
    }
    sizes = {row["size"] for row in whole.of("models") if row["subject"] == "adder"}
    assert sizes == {
        *("prefill 1x8", "prefill 1x16", "decode, batch 1", "decode, batch 2", "training 1x8"),
    }


def test_every_time_has_a_floor_and_the_share_of_it(whole):
    for row in whole.rows:
        if "seconds" in row:
            assert 0 < row["low"] <= row["seconds"] <= row["high"]
            assert row["of_floor"] == pytest.approx(row["floor_seconds"] / row["seconds"])


def test_runs_of_one_call_are_equal(whole):
    (row,) = [row for row in whole.rows if "difference" in row]
    assert (row["subject"], row["pass"], row["difference"]) == ("adder", "five runs", 0.0)


def test_the_page_fits_80_columns_and_the_rest_is_json_and_a_picture(whole):
    text = page(whole)
    assert max(map(len, text.splitlines())) <= 80
    for words in ("selective_scan 1x8x4 fwd+bwd", "Transformer", "attention", "largest", "torch"):
        assert words in text
    facts = json.loads(json.dumps(whole.to_dict()))
    assert facts["benchmark"] == "adder bench gpu"
    assert {row["peer"] for row in facts["ratios"]} == {"torch"}
    assert picture(whole).startswith(b"\x89PNG")


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_alone_has_the_limits_before_it(section):
    results = run(sections=frozenset({section}), models={})
    assert len(results.limits) == 4
    assert {row["section"] for row in results.rows} <= {section}


def job(name, measure) -> Job:
    return Job("operators", name, "1x1", "adder", measure)


def fails(error):
    def measure(_):
        yield {"pass": "forward", "seconds": 1.0}
        raise error

    return measure


def test_what_fails_is_a_line_and_the_others_go_on():
    errors = {
        "memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 PiB"),
        "error": RuntimeError("an illegal\n  instruction"),
        "known": CannotMeasure("a call would take about 9.0 s"),
        "module": ModuleNotFoundError("No module named 'x'"),
    }
    jobs = [job(name, fails(error)) for name, error in errors.items()]
    results = run([*jobs, job("last", lambda _: [{"pass": "forward", "seconds": 2.0}])])
    assert [row["name"] for row in results.rows] == [*errors, "last"]
    assert {row["name"]: row["why"] for row in results.left_out} == {
        "memory": "out of memory",
        "error": "RuntimeError: an illegal instruction",
        "known": "a call would take about 9.0 s",
        "module": "ModuleNotFoundError: No module named 'x'",
    }
    assert "adder: out of memory (memory 1x1)" in " ".join(page(results).split())


def test_the_deadline_leaves_out_by_name_what_has_not_begun():
    minute = iter(range(0, 6000, 60))
    jobs = [job(name, lambda _: [{"pass": "forward", "seconds": 1.0}]) for name in "abc"]
    # One reading at the beginning; for each job one before it, two within, and one for its row.
    results = run(jobs, now=lambda: float(next(minute)), minutes=2.0)
    assert [row["name"] for row in results.rows] == ["a"]
    assert [(row["name"], row["why"]) for row in results.left_out] == [
        ("b", "the 2 minutes were over"),
        ("c", "the 2 minutes were over"),
    ]
    assert "the 2 minutes were over (b 1x1; c 1x1)" in " ".join(page(results).split())


def test_an_interrupt_keeps_what_was_measured():
    def stop(_):
        raise KeyboardInterrupt

    plan, saved = tiny(), []
    results = Results(plan.to_dict())
    jobs = [job("a", lambda _: [{"pass": "forward", "seconds": 1.0}]), job("b", stop)]
    with pytest.raises(KeyboardInterrupt):
        Run(plan, results, lambda _: None, lambda: saved.append(len(results.rows)), jobs=jobs).run()
    assert saved == [1]
    assert not results.complete
    assert "interrupted" in " ".join(page(results).split())


def test_attention_that_would_take_too_long_is_left_out(monkeypatch):
    monkeypatch.setattr(lengths, "LONGEST_CALL", 0.0)
    monkeypatch.setattr(lengths, "SHORT", 0)
    results = run(sections=frozenset({"lengths"}))
    assert [row["length"] for row in results.rows if row["subject"] == "attention"] == [8]
    (row,) = results.left_out
    assert (row["size"], row["subject"]) == ("16", "attention")
    assert "-" in page(results)


def test_the_steps_told_are_those_shown():
    plan, shown = tiny(models={}, sections=frozenset({"limits", "lengths"})), []
    work = Run(plan, Results(plan.to_dict()), shown.append)
    work.run()
    assert len(shown) == work.steps() == 4 + 2 * 2


def test_the_loop_over_time_is_compiled_once_and_comes_last(monkeypatch):
    compiled = []

    def compile_function(function, dynamic):
        assert dynamic is False
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_function)
    changes = {"memories": (), "heads": (), "kernels": None, "loop": (1, 4, 4)}
    results = run(sections=frozenset({"operators"}), **changes)
    assert len(compiled) == 1
    assert [row["subject"] for row in results.rows[-2:]] == ["adder", "compiled loop"]
    assert "    compiled loop" in page(results)


def test_a_graph_that_is_refused_is_told_and_the_times_stay(monkeypatch):
    def refuse(*_: object) -> None:
        raise RuntimeError("operation not permitted\n when stream is capturing")

    monkeypatch.setattr(HostClock, "graph", refuse)
    results = run(sections=frozenset({"lengths"}))
    assert results.left_out == []
    for row in results.rows:
        assert row["no_graph"] == "operation not permitted when stream is capturing"


def test_a_graph_of_all_calls_is_the_time_of_each(monkeypatch):
    launched = []
    monkeypatch.setattr(HostClock, "graph", lambda _, calls: lambda: launched.append(len(calls)))
    results = run(sections=frozenset({"lengths"}))
    assert set(launched) == {2}
    for row in results.rows:
        assert row["graph_seconds"] < row["seconds"]
        assert row["of_floor"] == row["floor_seconds"] / row["graph_seconds"]


def test_a_device_that_refuses_everything_is_a_line_for_each(monkeypatch):
    """An error of CUDA that stays comes up again when memory is given back."""

    def refuse(_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(HostClock, "free", refuse)
    results = run([job("a", fails(ValueError("first"))), job("b", lambda _: [])])
    assert results.complete
    assert [row["why"] for row in results.left_out] == [
        "ValueError: first",
        "RuntimeError: CUDA error: an illegal memory access",
    ]
