"""Sealed files: what was written comes back, and any change of any byte is noticed."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from adder.errors import DamagedFile, UsageError
from adder.generation.sealed import load_sealed, save_sealed

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([True, False])}
FACTS = {"name": 'with "sha256":"' + "0" * 64 + '" inside', "position": 7}


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = tmp_path / "sealed"
    save_sealed(path, TENSORS, FACTS)
    return path


def test_what_was_saved_comes_back(sealed: Path) -> None:
    tensors, facts = load_sealed(sealed)
    assert facts == FACTS
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_it_is_a_plain_safetensors_file_that_others_can_read(sealed: Path) -> None:
    assert torch.equal(safetensors.torch.load_file(sealed)["a"], TENSORS["a"])


def test_the_same_content_gives_the_same_bytes(sealed: Path, tmp_path: Path) -> None:
    for _ in range(8):
        save_sealed(tmp_path / "again", TENSORS, FACTS)
        assert (tmp_path / "again").read_bytes() == sealed.read_bytes()


def test_views_are_saved_as_they_look(tmp_path: Path) -> None:
    save_sealed(tmp_path / "views", {"t": TENSORS["a"].t(), "row": TENSORS["a"][1]}, {})
    tensors, _ = load_sealed(tmp_path / "views")
    assert torch.equal(tensors["t"], TENSORS["a"].t())
    assert torch.equal(tensors["row"], TENSORS["a"][1])


def test_any_changed_byte_is_noticed(sealed: Path) -> None:
    content = sealed.read_bytes()
    for place in range(len(content)):
        for flip in (0x01, 0x80):
            changed = bytearray(content)
            changed[place] ^= flip
            sealed.write_bytes(changed)
            with pytest.raises(DamagedFile, match="sealed"):
                load_sealed(sealed)


def test_any_cut_and_anything_appended_is_noticed(sealed: Path) -> None:
    content = sealed.read_bytes()
    for length in range(len(content)):
        sealed.write_bytes(content[:length])
        with pytest.raises(DamagedFile):
            load_sealed(sealed)
    sealed.write_bytes(content + b"\0")
    with pytest.raises(DamagedFile):
        load_sealed(sealed)


def test_a_safetensors_file_of_someone_else_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(DamagedFile, match=r"model\.safetensors"):
        load_sealed(tmp_path / "model.safetensors")


def test_a_failed_write_leaves_the_old_file_and_no_other(
    sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = sealed.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{sealed}'"):
        save_sealed(sealed, {"a": torch.zeros(9)}, {})
    assert sealed.read_bytes() == before
    assert list(sealed.parent.iterdir()) == [sealed]


@pytest.mark.parametrize("place", ["/dev/null", "."])
def test_only_a_file_is_replaced(place: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="folder or a device"):
        save_sealed(tmp_path / place, TENSORS, {})


def test_a_link_stays_a_link(sealed: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(sealed)
    save_sealed(tmp_path / "link", TENSORS, {"new": True})
    assert (tmp_path / "link").is_symlink()
    assert load_sealed(sealed)[1] == {"new": True}


def test_a_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_sealed(tmp_path / "nowhere" / "state", TENSORS, {})
