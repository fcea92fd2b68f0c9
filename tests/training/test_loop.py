import errno
import os
import signal
from functools import partial

import pytest
import torch

from adder.errors import AdderError
from adder.training.checkpoint import list_checkpoints, newest_good
from adder.training.loop import fit
from adder.training.metrics import MetricsFile, read_metrics
from adder.training.progress import Silent


class Act(Silent):
    """A display that does something after a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def update(self, report):
        if report.step == self.step:
            self.action()


def test_a_run_learns_and_writes_all_its_files(tmp_path, train):
    run = tmp_path / "run"
    outcome = train(run, steps=60, learning_rate=1e-2, evaluate_every=20, save_every=30)
    lines = read_metrics(run)
    assert (outcome.reason, outcome.step) == ("finished", 60)
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert [line["step"] for line in lines if "validation_loss" in line] == [20, 40, 60]
    assert outcome.validation_loss == lines[-1]["validation_loss"]
    assert outcome.tokens_evaluated == 50
    assert [folder.name for folder in list_checkpoints(run)] == ["step-00000030", "step-00000060"]
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(run.glob("events.out.tfevents.*"))) == 1


def test_characters_in_ascii_cost_as_many_bits_per_byte(tmp_path, train):
    outcome = train(tmp_path / "run")
    expected = outcome.validation_loss / torch.log(torch.tensor(2.0)).item()
    assert outcome.validation_bits_per_byte == pytest.approx(expected)


def test_without_validation_nothing_is_evaluated(tmp_path, train):
    outcome = train(tmp_path / "run", validation=0.0)
    assert (outcome.validation_loss, outcome.tokens_evaluated) == (None, 0)


def test_seed_decides_the_run(tmp_path, train):
    losses = [train(tmp_path / str(n), seed=seed).loss for n, seed in enumerate((1, 1, 2))]
    assert losses[0] == losses[1] != losses[2]


def test_accumulation_reads_the_same_rows(tmp_path, train):
    whole = train(tmp_path / "whole", batch_size=4, accumulation=1)
    parts = train(tmp_path / "parts", batch_size=2, accumulation=2)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-4)


def test_time_limit_saves_and_stops(tmp_path, start):
    with start(tmp_path / "run") as session:
        outcome = fit(session, Silent(), time_limit=0.0)
    assert (outcome.reason, outcome.step) == ("time limit", 1)
    assert list_checkpoints(tmp_path / "run")[-1].name == "step-00000001"


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_signal_ends_the_step_and_saves(tmp_path, start, number, reason):
    before = signal.getsignal(number)
    with start(tmp_path / "run") as session:
        outcome = fit(session, Act(3, lambda: os.kill(os.getpid(), number)))
    assert (outcome.reason, outcome.step) == (reason, 3)
    assert list_checkpoints(tmp_path / "run")[-1].name == "step-00000003"
    assert signal.getsignal(number) is before


def test_second_interrupt_stops_at_once(tmp_path, start):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with start(tmp_path / "run") as session, pytest.raises(KeyboardInterrupt):
        fit(session, Act(3, twice))
    assert list_checkpoints(tmp_path / "run")[-1].name == "step-00000002"


def poison(session, name, value):
    def action():
        with torch.no_grad():
            dict(session.learner.model.named_parameters())[name].view(-1)[0] = value

    return action


@pytest.mark.parametrize(
    ("name", "value"),
    [("backbone.layers.1.mixer.A_log", float("nan")), ("backbone.embedding.weight", float("inf"))],
)
def test_poisoned_parameter_is_named_and_not_saved(tmp_path, start, name, value):
    with start(tmp_path / "run") as session, pytest.raises(AdderError) as caught:
        fit(session, Act(3, poison(session, name, value)))
    message = str(caught.value)
    assert "stopped after step 3" in message
    assert f"first in the parameter {name}" in message
    assert "step-00000002" in message
    assert "--resume" in message
    assert newest_good(list_checkpoints(tmp_path / "run")).name == "step-00000002"
    assert read_metrics(tmp_path / "run")[-1]["step"] == 3


def test_overflow_names_the_layer_where_it_began(tmp_path, start):
    # Finite weights whose product is not: the layer that overflows is named, not a parameter.
    with start(tmp_path / "run") as session:
        mixer = session.learner.model.backbone.layers[1].mixer
        with torch.no_grad():
            mixer.in_proj.weight.fill_(3e38)
        with pytest.raises(AdderError, match=r"the output of backbone\.layers\.1\.mixer\.in_proj"):
            fit(session, Silent())


@pytest.mark.parametrize("every", [{"evaluate_every": 1}, {"save_every": 1}])
def test_an_update_that_overflows_is_not_saved(tmp_path, start, every):
    settings = {"learning_rate": 1e39, "warmup": 0, "weight_decay": 0.0, **every}
    with (
        start(tmp_path / "run", **settings) as session,
        pytest.raises(AdderError, match="an update went too far: first in the parameter backbone"),
    ):
        fit(session, Silent())
    assert list_checkpoints(tmp_path / "run")[-1].name == "step-00000000"


def test_metrics_on_a_full_disk_end_the_run_with_one_line(tmp_path, start, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(MetricsFile, "append", full)
    with (
        start(tmp_path / "run") as session,
        pytest.raises(
            AdderError, match="No space left on device; its last good checkpoint is step-00000000"
        ),
    ):
        fit(session, Silent())


def test_checkpoint_on_a_full_disk_leaves_the_last_one(tmp_path, start, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with start(tmp_path / "run") as session:
        action = partial(monkeypatch.setattr, os, "fsync", full)
        with pytest.raises(AdderError, match="No space left on device; its last good checkpoint"):
            fit(session, Act(3, action))
    monkeypatch.undo()
    assert newest_good(list_checkpoints(tmp_path / "run")).name == "step-00000002"


def test_progress_that_nobody_reads_is_not_called_a_full_disk(tmp_path, start):
    def gone():
        raise BrokenPipeError

    with start(tmp_path / "run") as session, pytest.raises(BrokenPipeError):
        fit(session, Act(3, gone))


def test_full_memory_is_one_line(tmp_path, start, monkeypatch):
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    with start(tmp_path / "run") as session:
        monkeypatch.setattr(session.learner, "step", full)
        with pytest.raises(AdderError, match="out of memory: make --batch-size"):
            fit(session, Silent())
