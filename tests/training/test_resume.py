import io
import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from adder.errors import AdderError, DamagedFile, UsageError
from adder.training.checkpoint import list_checkpoints, read_checkpoint
from adder.training.config import TrainingConfig
from adder.training.loop import fit
from adder.training.metrics import MetricsFile, read_metrics
from adder.training.progress import Silent
from adder.training.session import resume_run, start_run

from .conftest import CPU, SMALL_MODEL, SMALL_TRAINING


def curve(run) -> list[dict]:
    return [
        {key: value for key, value in line.items() if key != "tokens_per_second"}
        for line in read_metrics(run)
    ]


def last(run):
    return read_checkpoint(list_checkpoints(run)[-1])


def assert_same_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


class Killed(BaseException):
    pass


def kill_at(step: int):
    """A display that ends the training without a word, as kill -9 does, after a step."""

    class Killer(Silent):
        def update(self, report):
            if report.step == step:
                raise Killed

    return Killer()


@pytest.mark.parametrize("killed_at", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "settings",
    [{}, {"carry_state": False}, {"accumulation": 2}, {"precision": "bfloat16"}],
    ids=["carried", "random", "accumulated", "bfloat16"],
)
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    tmp_path, start, train, resume, settings, killed_at
):
    train(tmp_path / "whole", **settings)
    with suppress(Killed), start(tmp_path / "parts", **settings) as session:
        fit(session, kill_at(killed_at))
    resume(tmp_path / "parts")
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert [line["step"] for line in curve(tmp_path / "parts")] == [1, 2, 3, 4, 5, 6]
    one, other = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert one.step == other.step == 6
    assert_same_tensors(one.model, other.model)
    assert_same_tensors(one.training, other.training)


def test_state_is_carried_and_part_of_the_checkpoint(tmp_path, train):
    train(tmp_path / "carried")
    train(tmp_path / "random", carry_state=False)
    assert any(name.startswith("state.0.0.") for name in last(tmp_path / "carried").training)
    assert not any(name.startswith("state.") for name in last(tmp_path / "random").training)


def test_resuming_from_an_older_checkpoint_removes_later_ones(tmp_path, train, resume):
    run = tmp_path / "run"
    train(run, keep=9)
    whole = curve(run)
    final = last(run)
    (run / "checkpoints" / "step-00000006" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DamagedFile, match=r"newest good checkpoint is .*step-00000004"):
        resume(run)
    resume(run / "checkpoints" / "step-00000002")
    assert curve(run) == whole
    assert_same_tensors(last(run).model, final.model)


def test_finished_run_goes_on_with_more_steps(tmp_path, train, resume):
    train(tmp_path / "run")
    with pytest.raises(UsageError, match="all its 6 steps"):
        resume(tmp_path / "run")
    assert resume(tmp_path / "run", steps=8).step == 8
    assert last(tmp_path / "run").settings["steps"] == 8


def test_settings_that_decide_the_data_cannot_change(tmp_path, train, resume):
    train(tmp_path / "run")
    with pytest.raises(UsageError, match="batch_size cannot change"):
        resume(tmp_path / "run", batch_size=3)


def test_changed_source_is_refused(tmp_path, source, train, resume):
    train(tmp_path / "run")
    with Path(source).open("a", encoding="utf-8") as file:
        file.write("fox")
    with pytest.raises(UsageError, match="has changed since the run began"):
        resume(tmp_path / "run", steps=9)


def test_lost_source_is_refused(tmp_path, train, resume):
    train(tmp_path / "run")
    (tmp_path / "source.txt").unlink()
    with pytest.raises(UsageError, match="is gone: there is no file"):
        resume(tmp_path / "run", steps=9)


def test_run_from_standard_input_keeps_its_text(tmp_path, monkeypatch, resume):
    text = io.TextIOWrapper(io.BytesIO(b"a text that comes through a pipe\n" * 9))
    monkeypatch.setattr(sys, "stdin", text)
    with start_run(
        tmp_path / "run",
        source="-",
        vocabulary="bytes",
        model=SMALL_MODEL,
        training=TrainingConfig(**SMALL_TRAINING),
        device=CPU,
    ) as session:
        fit(session, Silent())
    assert resume(tmp_path / "run", steps=7).step == 7


def test_two_processes_cannot_train_one_run(tmp_path, start):
    with (
        start(tmp_path / "run"),
        pytest.raises(AdderError, match="in use by another process"),
        resume_run(tmp_path / "run", changes={}, device=CPU),
    ):
        pass


def test_checkpoint_that_lacks_a_moment_is_damaged(tmp_path, train):
    train(tmp_path / "run")
    with resume_run(tmp_path / "run", changes={"steps": 7}, device=CPU) as session:
        tensors = session.learner.to_tensors()
        name = next(key for key in tensors if key.endswith("exp_avg"))
        for broken in (
            {key: value for key, value in tensors.items() if key != name},
            {**tensors, name: torch.zeros(1)},
            {key: value for key, value in tensors.items() if key != "random.cpu"},
            {key: value for key, value in tensors.items() if key != "state.0.0.ssm"},
        ):
            with pytest.raises(DamagedFile, match="run"):
                session.learner.load_tensors(broken, "run")


def test_metrics_end_where_a_run_resumes(tmp_path):
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo', "utf-8")
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    with MetricsFile(tmp_path, 2) as metrics:
        metrics.append({"step": 3, "loss": 0.5})
    assert read_metrics(tmp_path)[1:] == [{"step": 2, "loss": 1.0}, {"step": 3, "loss": 0.5}]


@pytest.mark.parametrize("content", ['{"step": 1}\n{"st\x00p": 2}\n{"step": 3}\n', "", "{}\n"])
def test_damaged_metrics_are_not_thrown_away(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(DamagedFile, match=r"metrics.jsonl is damaged.*the run is at step 3"):
        MetricsFile(tmp_path, 3)
    assert path.read_text("utf-8") == content
