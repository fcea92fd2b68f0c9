import io
import os
import sys

import pytest

from adder.data.text import PYTHON_SOURCES_LIMIT, read_source, split_by_position
from adder.errors import UsageError


def test_file_is_read_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("naïve\r\ntext".encode())
    text = read_source(str(path))
    assert text.text == "naïve\r\ntext"
    assert text.size_in_bytes == 12
    assert read_source(text.name) == text


def test_folder_is_its_text_files_in_sorted_order(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "second.txt").write_text("two", encoding="utf-8")
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    (tmp_path / "c.txt").write_text("three", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "late.bin").write_bytes(b"x" * 100_000 + b"\0")
    (tmp_path / ".hidden").write_text("not me", encoding="utf-8")
    assert read_source(str(tmp_path)).text == "one\ntwo\nthree"


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="standard input is closed"):
        read_source("-")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("größe".encode())))
    assert read_source("-").text == "größe"


def test_default_text_is_the_manual():
    text = read_source(None)
    assert text == read_source("python-docs")
    assert text.size_in_bytes > 400_000
    assert 'The "if" statement' in text.text


def test_python_sources_are_large_and_the_same_each_time():
    text = read_source("python-sources")
    assert 5_000_000 < text.size_in_bytes <= PYTHON_SOURCES_LIMIT
    assert text.sha256 == read_source("python-sources").sha256


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b" \n\t", "nothing but blanks"),
        (b"abc\0def", "binary .a zero byte at position 3"),
        (b"abc\xff", "not UTF-8 text: byte 0xff at position 3"),
    ],
)
def test_unfit_file_is_refused(tmp_path, data, message):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=message):
        read_source(str(path))


def test_missing_path_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no file or folder"):
        read_source(str(tmp_path / "nowhere"))


def test_path_with_a_zero_byte_is_refused():
    with pytest.raises(UsageError, match="is no path"):
        read_source("a\0b")


def test_empty_name_is_refused():
    with pytest.raises(UsageError, match="has no name"):
        read_source("")


def test_device_file_is_refused():
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        read_source("/dev/zero")


def test_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("text", encoding="utf-8")
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything: let the system call fail instead

        def refuse(self):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(UsageError, match=r"cannot read .*a\.txt: Permission denied"):
        read_source(str(path))


def test_folder_without_text_is_refused(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    with pytest.raises(UsageError, match="holds no UTF-8 text file"):
        read_source(str(tmp_path))


def test_split_by_position_keeps_everything():
    first, second = split_by_position("0123456789", 0.1)
    assert (first, second) == ("012345678", "9")
    assert split_by_position("0123", 0.0) == ("0123", "")


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_impossible_split_is_refused(fraction):
    with pytest.raises(UsageError, match="validation part"):
        split_by_position("text", fraction)
