"""`adder evaluate` on a classifier: both views, other data, other sampling rates."""

import re

import numpy as np
import pytest

from adder.cli.main import main
from adder.training import open_run

from ..data.sources import tones, wav_bytes, write_files, write_series


def test_default_is_the_test_part_as_a_convolution(sound_run, as_json, capsys):
    result = as_json("evaluate", sound_run)
    assert (result["sequences"], result["view"], result["step"]) == (4, "convolution", 100)
    assert "the test part of" in result["source"]
    assert result["accuracy"] == result["right"] / 4
    assert main(["evaluate", str(sound_run)]) == 0
    line = capsys.readouterr().out
    assert re.match(r"[\d.]+% right \(loss [\d.]+\) over 4 sequences of the test part of ", line)


@pytest.mark.parametrize("run", ["sound_run", "series_run"])
def test_both_views_make_the_same_predictions(run, request, as_json, capsys):
    path = request.getfixturevalue(run)
    whole = as_json("evaluate", path)
    steps = as_json("evaluate", path, "--view", "recurrence")
    assert steps["accuracy"] == whole["accuracy"]
    assert steps["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    for chunk in (1, 7, 1000):
        both = as_json("evaluate", path, "--view", "both", "--chunk", chunk)
        assert both["predictions_that_differ"] == 0
        assert both["largest_difference"] <= 1e-5 * both["largest_logit"]
        assert both["convolution"]["accuracy"] == both["recurrence"]["accuracy"]
    assert main(["evaluate", str(path), "--view", "both"]) == 0
    shown = capsys.readouterr().out
    assert "as a recurrence, 64 steps at a time" in shown
    assert "0 of " in shown


def test_the_run_learned_and_others_data_can_be_evaluated(sound_run, tmp_path, as_json):
    other = write_files(tmp_path / "other", {k: v for k, v in tones(14).items() if "_1" in k})
    result = as_json("evaluate", sound_run, other)
    assert result["sequences"] == 10
    assert result["accuracy"] == 1.0
    assert as_json("evaluate", sound_run, other, "--sequences", 3)["sequences"] == 3
    one = write_files(tmp_path / "one", {"high_2.wav": tones(3)["high_2.wav"]})
    assert as_json("evaluate", sound_run, one)["accuracy"] == 1.0


def test_the_runs_own_source_by_name_keeps_its_test_part(sound_run, sounds, as_json):
    assert as_json("evaluate", sound_run, sounds)["sequences"] == 4
    assert as_json("evaluate", sound_run, sounds, "--test-files", "*_0.wav")["sequences"] == 2


def test_without_a_test_part_it_is_what_was_held_out(tmp_path, sounds, as_json, line_of):
    small = ["--d-model=8", "--n-layer=1", "--d-state=4", "--batch-size=4", "--steps=1"]
    run = tmp_path / "run"
    assert main(["train", str(sounds), "-o", str(run), *small, "--validation=0.25"]) == 0
    result = as_json("evaluate", run)
    assert (result["sequences"], "the part held out of" in result["source"]) == (5, True)
    run = tmp_path / "whole"
    assert main(["train", str(sounds), "-o", str(run), *small, "--validation=0"]) == 0
    assert "was trained on all its sequences: give a SOURCE" in line_of(2, "evaluate", run)


def slowed(folder, rate):
    """The tones of a folder as a recorder of another rate has them."""
    files = {}
    for label, height in (("low", 200), ("high", 1500)):
        for i in range(4):
            length = (60 + 8 * i) * rate // 8000
            wave = np.sin(2 * np.pi * height / rate * np.arange(length))
            files[f"{label}_{i}.wav"] = wav_bytes((wave * 12000).astype(np.int16), rate)
    return write_files(folder, files)


def test_another_sampling_rate_needs_the_flag(sound_run, tmp_path, as_json, line_of):
    other = slowed(tmp_path / "other", 16000)
    line = line_of(2, "evaluate", sound_run, other)
    assert "has 16000 Hz, and the model was trained at 8000 Hz: give --rate auto" in line
    result = as_json("evaluate", sound_run, other, "--rate", "auto", "--view", "both")
    assert (result["rate"], result["convolution"]["accuracy"]) == (0.5, 1.0)
    assert result["predictions_that_differ"] == 0
    assert as_json("evaluate", sound_run, other, "--rate", "0.5")["accuracy"] == 1.0


def test_pixels_are_no_sound_though_their_labels_are_known(sound_run, tmp_path, as_json, line_of):
    path = write_series(
        tmp_path / "x.npz",
        **{"x_train": np.ones((4, 9)), "y_train": ["low", "high"] * 2},
        **{"x_test": None, "y_test": None},
    )
    line = line_of(2, "evaluate", sound_run, path)
    assert "has no sampling rate, and what the model was trained on 8000 Hz: give --rate 1" in line
    assert as_json("evaluate", sound_run, path, "--rate", "1")["sequences"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--view", "scan"], "no view scan: choose convolution, recurrence or both"),
        (["--chunk", "3"], "--chunk is for --view recurrence or both"),
        (["--rate", "fast"], '--rate must be a positive number or "auto", got fast'),
        (["--rate", "-1"], "--rate must be a positive number"),
        (["--length", "7"], "--length is for language models"),
        (["--mix"], "--mix needs a SOURCE"),
        (["nowhere"], "there is no file or folder nowhere"),
        (["--checkpoint", "step-7"], "has no checkpoint step-7"),
    ],
)
def test_impossible_options(sound_run, line_of, options, message):
    assert message in line_of(2, "evaluate", sound_run, *options)


def test_data_that_do_not_fit_the_model(sound_run, series_run, tmp_path, series, line_of):
    assert "has the label down, and the classes are high, low" in line_of(
        2, "evaluate", sound_run, series
    )
    other = write_files(tmp_path / "other", {"mid_1.wav": tones(2)["low_1.wav"]})
    assert "has the label mid" in line_of(2, "evaluate", sound_run, other)
    thin = write_series(tmp_path / "x.npz", x_train=np.ones((16, 9)), x_test=np.ones((6, 9)))
    assert "has 1 channels, and the model reads 2" in line_of(2, "evaluate", series_run, thin)
    assert "rate is 2.0, and a Mamba layer has no sampling rate" in line_of(
        2, "evaluate", series_run, "--rate", "2"
    )
    assert "--rate auto: the sampling rate of the model is not known" in line_of(
        2, "evaluate", series_run, "--rate", "auto"
    )


def test_a_language_model_takes_no_option_of_a_classifier(text_run, line_of):
    line = line_of(2, "evaluate", text_run, "--view", "both")
    assert "--view is for classifiers, and" in line


def test_a_saved_model_is_evaluated_like_a_run(sound_run, sounds, tmp_path, as_json, line_of):
    open_run(sound_run).classifier().save_pretrained(tmp_path / "model")
    assert "is a model of no run: give a SOURCE" in line_of(2, "evaluate", tmp_path / "model")
    options = (sounds, "--test-files", "*_[34].wav")
    saved, run = (as_json("evaluate", each, *options) for each in (tmp_path / "model", sound_run))
    assert saved["loss"] == run["loss"]
    assert saved["step"] is None
    assert "it has no checkpoint 4" in line_of(
        2, "evaluate", tmp_path / "model", "--checkpoint", "4"
    )


def test_a_bidirectional_model_has_no_recurrence(tmp_path, sounds, as_json, line_of):
    small = ["--d-model=8", "--n-layer=1", "--d-state=4", "--batch-size=4", "--steps=1"]
    run = tmp_path / "run"
    assert main(["train", str(sounds), "-o", str(run), *small, "--bidirectional"]) == 0
    assert as_json("evaluate", run)["sequences"] == 2
    assert "bidirectional model reads its whole input" in line_of(
        2, "evaluate", run, "--view", "both"
    )
