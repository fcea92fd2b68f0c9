"""`adder train TASK`, `adder evaluate` on it: what is asked for is what runs, and nothing else is taken."""

import json
from pathlib import Path

import pytest

from adder.cli.main import main
from adder.training.presets import SYNTHETIC_PRESETS, find_synthetic_preset
from adder.training.run_folder import open_run

QUICK = ["--d-model=16", "--n-layer=1", "--batch-size=2", "--steps=3", "--evaluation-tokens=60"]


def train(output: Path, *arguments: str) -> int:
    return main(["train", *arguments, *QUICK, "--device=cpu", "--output", str(output)])


@pytest.mark.parametrize("layer", ["mamba", "mamba2", "s4d", "transformer", "gru"])
def test_a_task_is_trained_and_evaluated_at_other_lengths(
    layer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    told = ["--length=20", "--task-option", "symbols=5"]
    assert train(run, "induction-heads", "--model", layer, *told) == 0
    said = capsys.readouterr().out
    assert "accuracy" in said
    assert f"adder evaluate {run} --length N" in said
    assert open_run(run).config.source["synthetic"] == {
        **{"name": "induction-heads", "length": 20, "symbols": 5}
    }
    for options, length, rows in [([], 20, 5000), (["--length=50", "--sequences=6"], 50, 6)]:
        assert main(["evaluate", str(run), "--json", "--device=cpu", *options]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["length"], found["sequences"], found["answers"]) == (length, rows, rows)
        assert 0 <= found["accuracy"] <= 1
    assert main(["evaluate", str(run), "--length=2"]) == 2
    assert "induction-heads: length is 2, expected at least 3" in capsys.readouterr().err


def test_a_run_of_a_task_reads_and_writes_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(run, "copying", "--length=24", "--task-option=tokens=4") == 0
    assert main(["train", "--resume", str(run), "--steps=4"]) == 0
    capsys.readouterr()
    assert main(["generate", str(run), "ABCD....>>", "--max-tokens=3", "--seed=1"]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert "answers right" in capsys.readouterr().out
    other = tmp_path / "other.txt"
    other.write_text("ABCD....>>>>")
    assert main(["evaluate", str(run), str(other)]) == 0
    assert "bits per byte" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["parity", "--vocabulary=bytes"], "--vocabulary is for a text, and parity is a task"),
        (["parity", "--carry-state"], "--carry-state is for a text, and parity is a task"),
        (["parity", "--pooling=mean"], "--pooling is for labelled sequences, and parity is a task"),
        (["parity", "--preset=tiny"], "no preset tiny of parity: choose scaled"),
        (["parity", "--task-option=x"], "--task-option must be NAME=NUMBER, such as tokens=8"),
        (["parity", "--task-option=tokens=3"], "parity has no tokens: it has length"),
        (["copying", "--length=9"], "copying: length is 9, expected at least 32"),
        (["--task-option=tokens=3"], "--task-option is for a task: copying, "),
        (["parity", "--model=rnn"], "no model rnn"),
    ],
)
def test_what_does_not_fit_a_task_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_the_papers_settings() -> None:
    copying = find_synthetic_preset("selective-copying", "paper")
    assert copying.source["length"] == 4096 + 16
    assert copying.training["steps"] * copying.training["batch_size"] == 25_600_000
    heads = find_synthetic_preset("induction-heads", "paper")
    assert heads.training["steps"] == 25 * 8192
    assert SYNTHETIC_PRESETS["scaled"].keys() > SYNTHETIC_PRESETS["paper"].keys()
