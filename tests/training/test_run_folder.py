import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adder.data.vocabulary import Characters
from adder.errors import AdderError, DamagedFile, UsageError
from adder.training import open_run
from adder.training.run_folder import RunConfig, locked, refuse_taken


@pytest.fixture
def run(tmp_path, train):
    train(tmp_path / "run")
    return tmp_path / "run"


def test_opens_at_the_newest_checkpoint(run):
    opened = open_run(run)
    assert (opened.step, opened.config.model.d_model) == (6, 16)
    assert isinstance(opened.vocabulary, Characters)
    model = opened.model()
    assert not model.training
    assert model(torch.zeros(1, 3, dtype=torch.long)).logits.shape == (1, 3, opened.vocabulary.size)


def test_a_text_is_still_format_1(run):
    """Runs of every version before tasks had a name: they load, and are written so."""
    values = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert values["format"] == 1
    assert "task" not in values
    assert open_run(run).config.task == "text"
    assert RunConfig.from_dict(values).to_dict() == values
    with pytest.raises(UsageError, match="its format is 1, of the task 'classification'"):
        RunConfig.from_dict({**values, "task": "classification"})


def test_a_language_model_is_no_classifier(run):
    with pytest.raises(UsageError, match="is a language model, not a classifier"):
        open_run(run).classifier()


@pytest.mark.parametrize("name", ["step-00000004", "4"])
def test_opens_at_a_named_checkpoint(run, name):
    assert open_run(run, name).step == 4
    assert open_run(str(run / "checkpoints" / "step-00000004")).step == 4


def test_a_run_has_nothing_to_unpickle(run):
    kinds = {path.suffix for path in (run / "checkpoints").rglob("*") if path.is_file()}
    assert kinds == {".safetensors", ".json"}


def test_folder_that_is_no_run(tmp_path, run):
    with pytest.raises(UsageError, match="there is no folder"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is no run"):
        open_run(tmp_path)
    with pytest.raises(UsageError, match="no checkpoint step-1: it has step-00000004"):
        open_run(run, "step-1")


@pytest.mark.parametrize(
    "file",
    ["config.json", "vocabulary.json"]
    + [f"checkpoints/step-00000006/{name}.safetensors" for name in ("model", "training")]
    + ["checkpoints/step-00000006/manifest.json"],
)
def test_edited_and_cut_files_are_named(run, file):
    path = run / file
    original = path.read_bytes()
    positions = [*random.Random(1).sample(range(len(original)), 12), 0, len(original) - 1]
    for position in positions:
        edited = bytearray(original)
        edited[position] ^= 0x20
        for data in (bytes(edited), original[:position]):
            path.write_bytes(data)
            with pytest.raises(DamagedFile, match=path.name) as caught:
                open_run(run)
            named = "newest good checkpoint" in str(caught.value)
            assert named == file.startswith("checkpoints/")
    path.write_bytes(original)
    assert open_run(run).step == 6


def test_older_checkpoint_opens_when_asked_for(run):
    (run / "checkpoints" / "step-00000006" / "model.safetensors").write_bytes(b"")
    assert open_run(run, "step-00000004").step == 4


def test_lost_checkpoints(run):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    with pytest.raises(DamagedFile, match="lost its checkpoints"):
        open_run(run)


def test_taken_output_is_refused(tmp_path, run):
    with pytest.raises(UsageError, match="already holds a run: continue it with --resume"):
        refuse_taken(run)
    with pytest.raises(UsageError, match="is not empty"):
        refuse_taken(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        refuse_taken(tmp_path / "source.txt")
    with pytest.raises(UsageError, match="no name for a run"):
        refuse_taken(Path())
    (tmp_path / "empty").mkdir()
    refuse_taken(tmp_path / "empty")
    refuse_taken(tmp_path / "new")


def test_no_half_made_run_is_left(tmp_path, start, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    with pytest.raises(AdderError, match="Permission denied"), start(tmp_path / "run"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["source.txt"]


def test_full_disk_makes_no_run(tmp_path, start, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(AdderError, match="cannot make the run .*/run: No space left on device$"),
        start(tmp_path / "run"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["source.txt"]


def test_output_below_a_file_is_refused(tmp_path, start):
    with pytest.raises(AdderError, match="Not a directory"), start(tmp_path / "source.txt" / "run"):
        pass


def test_lock_is_seen_by_another_process(run):
    script = (
        "import sys; from pathlib import Path; from adder.training.run_folder import RunConfig, locked\n"
        "with locked(Path(sys.argv[1])): pass"
    )
    with locked(run):
        other = subprocess.run(
            [sys.executable, "-c", script, str(run)], capture_output=True, text=True, check=False
        )
    assert "in use by another process" in other.stderr
    with locked(run):
        pass


def test_read_only_folder_cannot_be_locked(run, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(AdderError, match=r"cannot write to .*: Read-only file system"), locked(run):
        pass
