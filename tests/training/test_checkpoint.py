import errno
import os

import pytest
import torch

from adder.errors import DamagedFile
from adder.training.checkpoint import (
    Checkpoint,
    list_checkpoints,
    newest_good,
    prune_checkpoints,
    read_checkpoint,
    remove_checkpoints_after,
    write_checkpoint,
)


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        step, {"steps": 9}, {"w": torch.arange(6.0).view(2, 3)}, {"random.cpu": torch.ones(4)}
    )


@pytest.fixture
def run(tmp_path):
    for name in ("config.json", "vocabulary.json"):
        (tmp_path / name).write_text(f'{{"{name}": 1}}\n', encoding="utf-8")
    return tmp_path


def names(run) -> list[str]:
    return [folder.name for folder in list_checkpoints(run)]


def test_reads_what_was_written(run):
    read = read_checkpoint(write_checkpoint(run, checkpoint(200)))
    assert (read.step, read.settings) == (200, {"steps": 9})
    assert torch.equal(read.model["w"], torch.arange(6.0).view(2, 3))
    assert torch.equal(read.training["random.cpu"], torch.ones(4))
    assert names(run) == ["step-00000200"]


def test_writing_a_step_again_replaces_it(run):
    write_checkpoint(run, checkpoint(1))
    folder = write_checkpoint(run, Checkpoint(1, {"steps": 10}, {}, {}))
    assert read_checkpoint(folder).settings == {"steps": 10}


def test_pruning_keeps_the_newest_and_removes_unfinished_ones(run):
    for step in (1, 2, 10, 9):
        write_checkpoint(run, checkpoint(step))
    unfinished = run / "checkpoints" / ".step-00000011.new"
    unfinished.mkdir()
    prune_checkpoints(run, keep=2)
    assert names(run) == ["step-00000009", "step-00000010"]
    assert not unfinished.exists()


def test_removing_later_checkpoints(run):
    for step in (1, 2, 3):
        write_checkpoint(run, checkpoint(step))
    remove_checkpoints_after(run, 1)
    assert names(run) == ["step-00000001"]


@pytest.mark.parametrize("file", ["model.safetensors", "training.safetensors", "manifest.json"])
@pytest.mark.parametrize("place", ["checkpoint", "run"])
def test_any_flipped_byte_is_found(run, file, place):
    folder = write_checkpoint(run, checkpoint(5))
    path = folder / file
    if place == "run":
        path = run / {"model.safetensors": "config.json"}.get(file, "vocabulary.json")
    original = path.read_bytes()
    for position in range(len(original)):
        edited = bytearray(original)
        edited[position] ^= 1 << (position % 8)
        path.write_bytes(edited)
        with pytest.raises(DamagedFile, match=path.name):
            read_checkpoint(folder)
    path.write_bytes(original)
    assert read_checkpoint(folder).step == 5


@pytest.mark.parametrize(
    "file", ["model.safetensors", "training.safetensors", "manifest.json", "../../config.json"]
)
def test_any_cut_is_found(run, file):
    folder = write_checkpoint(run, checkpoint(5))
    path = (folder / file).resolve()
    original = path.read_bytes()
    for length in range(len(original)):
        path.write_bytes(original[:length])
        with pytest.raises(DamagedFile, match=path.name):
            read_checkpoint(folder)
    path.unlink()
    with pytest.raises(DamagedFile, match=f"{path.name} is missing"):
        read_checkpoint(folder)


@pytest.mark.parametrize("data", [b"null", b"[]", b"{}", b'{"format": 1}', b"[" * 100_000])
def test_manifest_of_another_kind_is_damaged(run, data):
    folder = write_checkpoint(run, checkpoint(5))
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(DamagedFile, match=r"manifest\.json"):
        read_checkpoint(folder)


def test_newest_good_passes_over_damaged_ones(run):
    good, bad = (write_checkpoint(run, checkpoint(step)) for step in (1, 2))
    (bad / "model.safetensors").write_bytes(b"")
    assert newest_good(list_checkpoints(run)) == good
    (good / "manifest.json").unlink()
    assert newest_good(list_checkpoints(run)) is None


@pytest.mark.parametrize("failing", range(1, 6))
def test_full_disk_leaves_the_last_checkpoint(run, monkeypatch, failing):
    last = write_checkpoint(run, checkpoint(1))
    calls = 0

    def full(_descriptor):
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    if failing == 5:  # the one after the rename: the new checkpoint is there and good
        with pytest.raises(OSError, match="No space left"):
            write_checkpoint(run, checkpoint(2))
        assert newest_good(list_checkpoints(run)).name == "step-00000002"
        return
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(run, checkpoint(2))
    assert newest_good(list_checkpoints(run)) == last
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000001"]
