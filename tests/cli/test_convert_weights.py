"""`adder convert --weights`: a language model is rounded, measured, written, and read again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from adder import LanguageModel, SequenceClassifier, SequenceClassifierConfig, Stream
from adder.cli.main import main
from adder.data.vocabulary import Vocabulary
from adder.models import quantize_model
from adder.training.evaluation import evaluate_text
from adder.training.run_folder import open_run

TEXT = "the snake adds, the adder hisses. " * 60


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt its text a little, so that rounding makes a difference."""
    folder = tmp_path_factory.mktemp("convert")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    sizes = ["--d-model=32", "--n-layer=2", "--batch-size=4", "--length=32", "--device=cpu"]
    options = ["--steps=40", "--learning-rate=1e-2", "--validation=0.2"]
    assert (
        main(["train", str(folder / "text.txt"), "-o", str(folder / "run"), *sizes, *options]) == 0
    )
    return folder / "run"


@pytest.fixture(autouse=True)
def _threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_run_is_rounded_and_measured_on_its_own_text(
    run: Path, tmp_path: Path, weights: Any, as_json: Any
) -> None:
    facts = as_json("convert", run, tmp_path / "small", "--weights", weights)
    opened = open_run(run)
    rounded = quantize_model(opened.model(), weights)
    ids = opened.vocabulary.encode(TEXT[int(len(TEXT) * 0.8) :])
    assert facts["tokens"] == ids.size - 1
    for when, model in (("before", opened.model()), ("after", rounded)):
        expected = evaluate_text(model, ids)
        assert facts[f"perplexity_{when}"] == pytest.approx(expected.perplexity, rel=1e-6)
        assert facts[f"bits_per_byte_{when}"] == pytest.approx(expected.bits_per(ids.size - 1))
    assert facts["perplexity_before"] != facts["perplexity_after"]
    assert facts["perplexity_after"] == pytest.approx(facts["perplexity_before"], rel=0.1)
    assert facts["not_measured"] is None
    assert facts["megabytes_after"] < facts["megabytes_before"] / 2

    folder = tmp_path / "small"
    assert sorted(each.name for each in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "vocabulary.json",
    ]
    size = (folder / "model.safetensors").stat().st_size / 1e6
    assert facts["megabytes_after"] == pytest.approx(size, abs=0.01)
    read = LanguageModel.from_pretrained(folder)
    assert read.config.weights == weights
    for name, tensor in rounded.state_dict().items():
        assert torch.equal(tensor, read.state_dict()[name]), name


def test_the_page_says_what_was_lost_and_what_is_next(
    run: Path, tmp_path: Path, capsys: Any
) -> None:
    target = tmp_path / "a b"
    assert main(["convert", str(run), str(target), "--weights", "int4"]) == 0
    out = capsys.readouterr().out
    assert "MB before" in out
    assert "with int4 weights" in out
    assert "% of perplexity, over" in out
    assert "of the validation part of" in out
    assert f"adder generate '{target}' PROMPT" in out


def test_what_was_converted_generates_and_evaluates(
    run: Path, tmp_path: Path, as_json: Any, capsys: Any
) -> None:
    small = tmp_path / "small"
    facts = as_json("convert", run, small, "--weights", "int8")
    (tmp_path / "own.txt").write_text(TEXT[int(len(TEXT) * 0.8) :])
    result = as_json("evaluate", small, tmp_path / "own.txt")
    assert result["bits_per_byte"] == pytest.approx(facts["bits_per_byte_after"], rel=1e-6)
    assert result["step"] is None
    written = as_json("generate", small, "the ", "--max-tokens=20", "--temperature=0")
    stream = Stream(
        LanguageModel.from_pretrained(small), Vocabulary.load(small / "vocabulary.json")
    )
    stream.feed("the ")
    assert written["text"] == "".join(map(str, stream.generate(20, temperature=0)))
    state = tmp_path / "state"
    assert main(["generate", str(small), "the ", "--max-tokens=4", f"--save-state={state}"]) == 0
    capsys.readouterr()
    assert main(["generate", str(run), f"--state={state}"]) == 2
    assert "model" in capsys.readouterr().err


def test_a_folder_and_a_text(run: Path, tmp_path: Path, as_json: Any) -> None:
    opened = open_run(run)
    folder, text = tmp_path / "float", tmp_path / "text.txt"
    opened.model().save_pretrained(folder)
    text.write_text("the adder adds")
    facts = as_json("convert", folder, tmp_path / "1", "--weights=int8")
    assert facts["not_measured"].endswith("has no vocabulary")
    assert "perplexity_after" not in facts
    shutil.copy(run / "vocabulary.json", folder)
    facts = as_json("convert", folder, tmp_path / "2", "--weights=int8")
    assert facts["not_measured"].endswith("is a model of no run, and no --text was given")
    facts = as_json("convert", folder, tmp_path / "3", "--weights=int8", "--text", text)
    assert (facts["text"], facts["tokens"]) == (str(text), 13)
    # --text goes before a run's own
    assert as_json("convert", run, tmp_path / "4", "--weights=int8", "--text", text)["tokens"] == 13


def test_a_text_that_has_changed_is_not_measured_on(
    run: Path, tmp_path: Path, as_json: Any
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    source = Path(json.loads((copy / "config.json").read_text())["source"]["name"])
    before = source.read_text()
    try:
        source.write_text("another text")
        facts = as_json("convert", copy, tmp_path / "small", "--weights=int8")
    finally:
        source.write_text(before)
    assert "has changed since the run began" in facts["not_measured"]
    assert (tmp_path / "small" / "model.safetensors").is_file()


def test_no_vocabulary_is_a_clear_line(run: Path, tmp_path: Path, line_of: Any) -> None:
    open_run(run).model().save_pretrained(tmp_path / "float")
    expected = "holds a model without a vocabulary"
    (tmp_path / "text.txt").write_text("the adder")
    assert expected in line_of(2, "generate", tmp_path / "float", "the ")
    assert expected in line_of(2, "evaluate", tmp_path / "float", tmp_path / "text.txt")
    assert "is a model of no run: give a SOURCE" in line_of(2, "evaluate", tmp_path / "float")
    (tmp_path / "float" / "vocabulary.json").write_text('{"format": 1, "kind": "bytes"}')
    wrong = line_of(1, "generate", tmp_path / "float", "the ")
    assert "its vocabulary has 256 tokens, and its model" in wrong


def test_what_cannot_be_rounded(run: Path, tmp_path: Path, line_of: Any) -> None:
    new = tmp_path / "new"
    small = tmp_path / "small"
    assert main(["convert", str(run), str(small), "--weights=int4"]) == 0
    int8 = "--weights=int8"
    assert "has int4 weights already" in line_of(2, "convert", small, new, int8)
    assert "is there already: give another DST" in line_of(2, "convert", run, small, int8)
    assert "must be int8 or int4, got int2" in line_of(2, "convert", run, new, "--weights=int2")
    assert "is a file" in line_of(2, "convert", small / "model.safetensors", new, int8)
    assert "there is no folder" in line_of(2, "convert", tmp_path / "nowhere", new, int8)
    assert "--prenorm is for" in line_of(2, "convert", run, new, int8, "--prenorm")
    assert "--format for float weights" in line_of(2, "convert", run, new, int8, "--format=adder")
    assert "--text needs --weights" in line_of(2, "convert", run, new, "--text=x")
    missing = line_of(2, "convert", run, new, int8, f"--text={tmp_path / 'none.txt'}")
    assert "none.txt" in missing
    (tmp_path / "greek.txt").write_text("αβγ")
    assert "lacks these characters" in line_of(
        2, "convert", run, new, int8, f"--text={tmp_path / 'greek.txt'}"
    )
    classifier = SequenceClassifier(SequenceClassifierConfig(d_input=1, classes=2, d_model=4))
    classifier.save_pretrained(tmp_path / "classes")
    assert "is a classifier" in line_of(2, "convert", tmp_path / "classes", new, int8)
    assert "is a classifier" in line_of(2, "generate", tmp_path / "classes", "the ")
    damaged = tmp_path / "damaged"
    shutil.copytree(small, damaged)
    (damaged / "model.safetensors").write_bytes((small / "model.safetensors").read_bytes()[:-8])
    assert "model.safetensors" in line_of(1, "generate", damaged, "the ")
    assert not new.exists()
    assert not any(each.name.startswith(".") for each in tmp_path.iterdir())


def test_weights_that_are_not_finite_are_named(run: Path, tmp_path: Path, line_of: Any) -> None:
    model = open_run(run).model()
    with torch.no_grad():
        model.backbone.layers[1].mixer.out_proj.weight[3, 5] = torch.nan  # type: ignore[union-attr, index, operator]
    model.save_pretrained(tmp_path / "bad")
    line = line_of(1, "convert", tmp_path / "bad", tmp_path / "new", "--weights=int8")
    assert "backbone.layers.1.mixer.out_proj.weight holds a NaN or an infinity" in line


def test_an_interrupt_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for where in ("adder.training.evaluation.evaluate_text", "adder.models.checkpoint.save_file"):
        with monkeypatch.context() as patch:
            patch.setattr(where, interrupt)
            assert main(["convert", str(run), str(tmp_path / "new"), "--weights=int8"]) == 130
        assert "interrupted" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line_of: Any
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    line = line_of(1, "convert", run, tmp_path / "new", "--weights=int8")
    assert "cannot write" in line
    assert list(tmp_path.iterdir()) == []
