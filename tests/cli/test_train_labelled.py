"""`adder train` on labelled sequences, and every way in which that cannot be."""

import json

import pytest

from adder.cli.main import main
from adder.training.presets import CLASSIFIER_PRESETS

from ..data.sources import tone, write_files, write_images, write_tar
from .conftest import QUICK, SMALL


def test_train_and_resume(tmp_path, sounds, capsys):
    run = tmp_path / "run"
    options = ["--test-files", "*_[34].wav", *QUICK, "--steps", "4", "--time-limit", "60"]
    assert main(["train", str(sounds), "-o", str(run), *options]) == 0
    streams = capsys.readouterr()
    assert "12 sequences, 4 for validation, 4 for testing, 2 classes" in streams.err
    assert "float32 on cpu, 4 steps of 4 x 40 to 103 steps; in" in streams.err
    assert "step 4/4: loss" in streams.err
    assert "% over 4 sequences held out" in streams.out
    assert "over 4 sequences never trained on" in streams.out
    assert f"adder evaluate {run} --view both" in streams.out
    assert max(map(len, streams.err.splitlines()[1:])) <= 80
    assert main(["train", "--resume", str(run), "--steps", "6", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["reason"], result["step"], result["sequences_tested"]) == ("finished", 6, 4)
    assert 0 <= result["test_accuracy"] <= 1
    assert result["sequences_per_second"] > 0


def test_the_form_chooses_the_preset_and_s4d_is_the_model(tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    options = [*SMALL, "--steps", "1", "--validation", "0.25"]
    assert main(["train", str(images), *options]) == 0
    run = tmp_path / "runs" / f"{images.name}-s4d"
    config = json.loads((run / "config.json").read_text("utf-8"))
    assert config["model"]["layer"] == "s4d"
    expected = CLASSIFIER_PRESETS["pixels"].training["evaluation_sequences"]
    assert config["training"]["evaluation_sequences"] == expected
    assert config["training"]["precision"] == "float32"
    assert config["source"]["form"] == "idx"


def test_options_reach_the_model(tmp_path, series):
    options = ["--model=s4", "--measure=legt", "--rank=3", "--n-ssm=2", "--postnorm", "--norm=rms"]
    options += ["--pooling=last", "--dt-min=0.01", "--ssm-learning-rate=0.002", "--channels-out=2"]
    run = tmp_path / "run"
    assert main(["train", str(series), "-o", str(run), *QUICK, "--steps=1", *options]) == 0
    model = json.loads((run / "config.json").read_text("utf-8"))["model"]
    expected = {"layer": "s4", "measure": "legt", "rank": 3, "n_ssm": 2, "prenorm": False}
    expected |= {"norm": "rms", "pooling": "last", "dt_min": 0.01, "ssm_learning_rate": 0.002}
    assert {name: model[name] for name in expected} == expected


@pytest.mark.parametrize("name", CLASSIFIER_PRESETS)
def test_presets_are_valid(name):
    from adder.models import SequenceClassifierConfig
    from adder.training.config import ClassificationConfig

    preset = CLASSIFIER_PRESETS[name]
    ClassificationConfig(**preset.training)
    config = SequenceClassifierConfig(classes=10, d_input=1, **preset.model)
    assert config.parameter_count() <= 250_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model=mamba2"], "--model mamba2 is for a text"),
        (["--model=gru"], "--model gru is for a text"),
        (
            ["--model=rwkv"],
            "no model rwkv: choose mamba, mamba2, s4, s4d, transformer, lstm or gru",
        ),
        (["--model=s4", "--measure=legt", "--rank=1"], "rank is 1, but legt needs at least 2"),
        (["--model=s4", "--measure=odd"], "measure is 'odd'"),
        (["--init=odd"], "init is 'odd'"),
        (["--d-state=5"], "d_state is 5, expected an even number"),
        (["--measure=legs"], "measure is a setting of s4, and the layer is s4d"),
        (["--d-conv=3"], "d_conv is a setting of mamba"),
        (["--n-ssm=3"], "n_ssm is 3, expected a divisor of d_model 8"),
        (["--d-model=1000000000"], "more than any machine holds"),
        (["--n-layer=100000000"], "GiB are free"),
        (["--batch-size=100000"], "a step needs 100000 sequences"),
        (["--validation=0.001"], "leaves 0"),
        (["--validation=1"], "validation must be in [0, 1)"),
        (["--dropout=1"], "dropout is 1.0"),
        (["--pooling=max"], "pooling is 'max'"),
        (["--buckets=0"], "buckets must be at least 1"),
        (["--precision=float8"], "no precision float8"),
        (["--preset=tiny"], "the preset tiny is for a text"),
        (["--preset=odd"], "no preset odd: choose one of pixels, audio, series"),
        (["--vocabulary=bytes"], "--vocabulary is for a text, and"),
        (["--length=9"], "--length is for a text"),
        (["--no-carry-state"], "--carry-state is for a text"),
        (["--test-files=*"], "--test-files is for wav files"),
        (["--mix"], "--mix is for wav files"),
        (["--tokens"], "x_train cannot be read as tokens"),
    ],
)
def test_impossible_options(tmp_path, series, line_of, options, message):
    line = line_of(2, "train", series, "-o", tmp_path / "run", *SMALL, *options)
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dropout=0.1"], "--dropout is for labelled sequences, and this is a text"),
        (["--preset=pixels"], "the preset pixels is for labelled sequences"),
        (["--model=s4d", "--tokens"], "holds no labelled sequences: give a folder of idx files"),
        (["--tokens"], "holds no labelled sequences"),
    ],
)
def test_a_text_is_no_labelled_source(tmp_path, line_of, options, message):
    (tmp_path / "text.txt").write_text("a text " * 50, encoding="utf-8")
    arguments = ["train", tmp_path / "text.txt", "-o", tmp_path / "run", *options]
    assert message in line_of(2, *arguments)


def test_a_classifier_needs_a_source(line_of):
    assert "needs a SOURCE of labelled sequences" in line_of(2, "train", "--model=s4")


def test_sources_that_cannot_be_read(tmp_path, line_of, sounds):
    def refused(code, path, *options):
        return line_of(code, "train", path, "-o", tmp_path / "run", *SMALL, *options)

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no UTF-8 text file" in refused(2, empty)
    assert "holds no labelled sequences" in refused(2, empty, "--tokens")
    assert "there is no file or folder" in refused(2, tmp_path / "nowhere", "--model=s4d")
    mixed = write_files(tmp_path / "mixed", {"a_1.wav": tone("", 1), "b_1.wav": tone("", 1, 16000)})
    assert "a_1.wav has 8000 Hz, and b_1.wav 16000 Hz" in refused(2, mixed)
    single = write_files(tmp_path / "single", {"a_1.wav": tone("", 1), "a_2.wav": tone("", 2)})
    assert "has one class only, a" in refused(2, single)
    cut = write_tar(tmp_path / "cut.tar", {"a_1.wav": tone("", 1)})
    cut.write_bytes(cut.read_bytes()[:600])
    assert "cut.tar is damaged" in refused(1, cut)
    assert "fits no file of" in refused(2, sounds, "--test-files=*.flac")
    damaged = write_images(tmp_path / "images") / "train-images-idx3-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert "train-images-idx3-ubyte.gz is damaged" in refused(1, damaged.parent)
    (tmp_path / "x.npz").write_bytes(b"PK")
    assert "x.npz is damaged, or no .npz file" in refused(1, tmp_path / "x.npz")
    assert not (tmp_path / "run").exists()


def test_resuming_takes_no_option_of_the_model(sound_run, line_of):
    line = line_of(2, "train", "--resume", sound_run, "--model=s4")
    assert "--model cannot be given with --resume" in line
