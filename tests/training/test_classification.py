"""A classifier's run: it learns, resumes bit for bit, and its test part is looked at once."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from adder.data import LabelledOptions, read_labelled
from adder.errors import AdderError, DamagedFile, UsageError
from adder.training import loop, open_run
from adder.training.checkpoint import list_checkpoints, read_checkpoint
from adder.training.class_evaluation import compare_views, read_classes
from adder.training.config import ClassificationConfig
from adder.training.loop import fit
from adder.training.memory import check_memory
from adder.training.metrics import read_metrics
from adder.training.progress import Silent
from adder.training.session import resume_run, start_classification

from ..data.sources import tone, tones, write_files, write_images, write_series
from .conftest import CPU
from .test_resume import Killed, assert_same_tensors, kill_at

MODEL = {"d_model": 8, "n_layer": 1, "d_state": 4, "dropout": 0.1}
SETTINGS = {
    "steps": 6,
    "batch_size": 2,
    "warmup": 1,
    "validation": 0.25,
    "evaluate_every": 3,
    "evaluation_sequences": 4,
    "save_every": 2,
}


@pytest.fixture
def sounds(tmp_path) -> str:
    return str(write_files(tmp_path / "sounds", tones(8)))


@pytest.fixture
def start(sounds):
    """start(output, **settings) makes a run of sounds of different lengths, two of them for testing."""

    def make(output, model=None, source=None, options=None, **settings):
        return start_classification(
            output,
            source=source or sounds,
            options=options or LabelledOptions(test_files="*_3.wav"),
            model={**MODEL, **(model or {})},
            training=ClassificationConfig(**{**SETTINGS, **settings}),
            device=CPU,
        )

    return make


@pytest.fixture
def train(start):
    def make(output, **settings):
        with start(output, **settings) as session:
            return fit(session, Silent())

    return make


def curve(run: Path) -> list[dict]:
    lines = read_metrics(run)
    return [{k: v for k, v in line.items() if k != "sequences_per_second"} for line in lines]


def last(run: Path):
    return read_checkpoint(list_checkpoints(run)[-1])


@pytest.mark.parametrize("layer", ["s4", "s4d", "mamba"])
def test_a_run_learns_and_writes_all_its_files(tmp_path, train, layer):
    run = tmp_path / "run"
    source = str(write_series(tmp_path / "x.npz"))
    settings = {"steps": 40, "learning_rate": 2e-2, "batch_size": 4}
    settings |= {"evaluate_every": 20, "save_every": 20}
    outcome = train(
        run, source=source, options=LabelledOptions(), model={"layer": layer}, **settings
    )
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert lines[-1]["sequences"] == 160
    assert [line["step"] for line in lines if "validation_accuracy" in line] == [20, 40]
    assert outcome.figures["test_accuracy"] == outcome.figures["validation_accuracy"] == 1.0
    assert outcome.figures["sequences_tested"] == 6
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    config = json.loads((run / "config.json").read_text("utf-8"))
    assert (config["format"], config["task"]) == (2, "classification")
    assert config["model"]["labels"] == ["down", "up"]
    assert not (run / "vocabulary.json").exists()


@pytest.mark.parametrize("killed_at", [1, 4])
@pytest.mark.parametrize(
    "settings",
    [{}, {"accumulation": 2}, {"buckets": 3}, {"model": {"layer": "mamba"}}],
    ids=["s4d", "accumulated", "buckets", "mamba"],
)
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    tmp_path, start, train, monkeypatch, settings, killed_at
):
    monkeypatch.setattr(
        loop, "plot_loss", lambda *_: None
    )  # nine tenths of the time of so few steps
    train(tmp_path / "whole", **settings)
    with suppress(Killed), start(tmp_path / "parts", **settings) as session:
        fit(session, kill_at(killed_at))
    with resume_run(tmp_path / "parts", changes={}, device=CPU) as session:
        resumed = fit(session, Silent())
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    one, other = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert one.step == other.step == 6
    assert_same_tensors(one.model, other.model)
    assert_same_tensors(one.training, other.training)
    assert resumed.figures["sequences_tested"] == 2


def test_the_step_sizes_keep_their_own_rate_under_the_schedule(start, tmp_path):
    with start(tmp_path / "run", learning_rate=1e-2) as session:
        session.learner.step(session.task.batch(0), 5e-3)
        rates = {group["lr"] for group in session.learner.optimizer.param_groups}
    assert sorted(rates) == pytest.approx([5e-4, 5e-3])


def test_validation_and_test_are_never_trained_on(start, tmp_path):
    with start(tmp_path / "run") as session:
        task = session.task
        held = set(task.validation_indices.tolist())
        read = {int(i) for step in range(50) for i in task.batches.rows_of(step)}
        assert len(held) == 4
        assert len(read) == 10
        assert not held & read
        assert len(task.data.test) == 2


def test_scaling_is_that_of_the_training_part(start, tmp_path):
    with start(tmp_path / "run") as session:
        config, task = session.config.model, session.task
        expected = task.data.train.statistics(task.training_indices)
        assert (config.input_mean, config.input_std) == expected
        assert config.sampling_rate == 8000.0


def test_both_views_of_a_run_agree_on_rows_of_any_length(train, tmp_path):
    train(tmp_path / "run")
    run = open_run(tmp_path / "run")
    model = run.classifier()
    data = read_labelled(str(tmp_path / "sounds")).train
    every = np.arange(len(data))
    whole = read_classes(model, data, every)
    for rows, chunk in ((1, 1000), (5, 7), (16, 1), (3, None)):
        told = []
        parts = read_classes(
            model,
            data,
            every,
            rows=rows,
            chunk=chunk,
            progress=lambda *at, told=told: told.append(at),
        )
        assert (parts.right, parts.count) == (whole.right, 16)
        assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
        assert told[-1][0] == told[-1][1]
    compared = compare_views(model, data, every, chunk=3)
    assert compared.predictions_that_differ == 0
    assert compared.largest_difference < 1e-5 * compared.largest_logit
    assert not model.training


def test_a_classifier_is_no_language_model(train, tmp_path):
    train(tmp_path / "run")
    run = open_run(tmp_path / "run")
    for refused in (run.model, lambda: run.vocabulary):
        with pytest.raises(UsageError, match="is a classifier, not a language model"):
            refused()


@pytest.mark.parametrize("file", ["config.json", "checkpoints/step-00000006/model.safetensors"])
def test_edited_files_are_named(train, tmp_path, file):
    train(tmp_path / "run")
    path = tmp_path / "run" / file
    path.write_bytes(path.read_bytes().replace(b"s", b"t", 1)[:-1])
    with pytest.raises(DamagedFile, match=path.name):
        open_run(tmp_path / "run")


def test_a_vocabulary_that_came_from_elsewhere_is_refused(train, tmp_path):
    train(tmp_path / "run")
    (tmp_path / "run" / "vocabulary.json").write_text("{}")
    with pytest.raises(DamagedFile, match=r"vocabulary\.json does not belong"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize("change", ["changed", "gone"])
def test_data_that_changed_are_refused(train, tmp_path, sounds, change):
    train(tmp_path / "run")
    if change == "changed":
        write_files(Path(sounds), {"low_0.wav": tone("high", 0)})
    else:
        Path(sounds).rename(tmp_path / "elsewhere")
    with (
        pytest.raises(UsageError, match=f"(have {change} since|are {change}: )"),
        resume_run(tmp_path / "run", changes={"steps": 8}, device=CPU),
    ):
        pass


def test_settings_of_a_text_cannot_be_given_to_it(train, tmp_path):
    train(tmp_path / "run")
    with (
        pytest.raises(UsageError, match="evaluation_tokens is no setting of the run"),
        resume_run(tmp_path / "run", changes={"evaluation_tokens": 8}, device=CPU),
    ):
        pass


def test_a_loss_that_is_not_finite_names_the_layer(start, tmp_path):
    with start(tmp_path / "run") as session:
        with torch.no_grad():
            session.learner.model.layers[0].mixer.output_linear.weight.fill_(3e38)
        with pytest.raises(AdderError, match=r"first in the output of layers\.0"):
            fit(session, Silent())


class Interrupt(Silent):
    def update(self, report):
        if report.step == 3:
            os.kill(os.getpid(), signal.SIGINT)


def test_time_limit_tests_and_an_interrupt_does_not(start, tmp_path):
    with start(tmp_path / "limited") as session:
        outcome = fit(session, Silent(), time_limit=0.0)
    assert (outcome.reason, outcome.figures["sequences_tested"]) == ("time limit", 2)
    with start(tmp_path / "interrupted") as session:
        outcome = fit(session, Interrupt())
    assert (outcome.reason, outcome.step) == ("interrupted", 3)
    assert "test_accuracy" not in outcome.figures


def test_a_test_that_is_stopped_reports_nothing(start, tmp_path):
    with start(tmp_path / "run") as session:
        assert session.task.test(session.learner.model, lambda: True) == {}


def test_too_few_sequences_and_too_much_memory(start, tmp_path):
    for settings, message in (
        ({"batch_size": 11}, "a step needs 11 sequences, and 10 are there"),
        ({"validation": 0.01}, "0.01 of 14 sequences for validation leaves 0"),
    ):
        with (
            pytest.raises(UsageError, match=message),
            start(tmp_path / "run", **settings),
        ):
            pass
    assert not (tmp_path / "run").exists()
    with (
        start(tmp_path / "run") as session,
        pytest.raises(UsageError, match=r"2 x 1000000000 steps at once .* or --batch-size"),
    ):
        check_memory(session.config.model, session.training, CPU, length=10**9)


def test_images_as_tokens(tmp_path, start):
    source = str(write_images(tmp_path / "images"))
    options = LabelledOptions(tokens=True)
    with start(tmp_path / "run", source=source, options=options) as session:
        assert session.config.model.vocab_size == 256
        assert fit(session, Silent()).figures["sequences_tested"] == 4
