"""wav files by label: from a folder and from a tar, and what cannot be read so."""

import tarfile

import numpy as np
import pytest

from adder.data.sounds import read_sounds
from adder.errors import AdderError, DamagedFile, UsageError

from .sources import tone, tones, wav_bytes, write_files, write_tar


def read(path, test_files=None, mix=False, memory=None):
    return read_sounds(path, test_files, mix, memory)


def rows(part):
    return [part.values[a:b, 0] for a, b in zip(part.offsets, part.offsets[1:], strict=False)]


def test_a_tar_reads_as_the_folder_that_was_packed(tmp_path):
    files = {f"recordings/{name}": data for name, data in tones().items()}
    folder = read(write_files(tmp_path / "folder", files))
    tar = read(write_tar(tmp_path / "x.tar", files))
    assert folder.train.names == tar.train.names == ("high",) * 6 + ("low",) * 6
    assert np.array_equal(folder.train.values, tar.train.values)
    assert np.array_equal(folder.train.offsets, tar.train.offsets)
    assert folder.sampling_rate == tar.sampling_rate == 8000.0
    assert folder.test is None


def test_a_folder_names_the_label_of_its_files(tmp_path):
    files = {
        "no/a.wav": tone("low", 0),
        "yes/deep/b_1.wav": tone("high", 1),
        "up_2.WAV": tone("", 2),
    }
    found = read(write_files(tmp_path, {**files, "no/notes.txt": b"", ".hidden.wav": b""}))
    assert found.train.names == ("no", "up", "yes")
    assert [len(row) for row in rows(found.train)] == [40, 54, 47]


@pytest.mark.parametrize("pattern", ["*_[0-1].wav", "r/*_[01].wav"])
def test_a_pattern_says_which_files_are_for_testing(tmp_path, pattern):
    path = write_tar(tmp_path / "x.tar", {f"r/{name}": data for name, data in tones().items()})
    found = read(path, pattern)
    assert (len(found.train.names), len(found.test.names)) == (8, 4)
    assert found.test.names == ("high", "high", "low", "low")
    assert [len(row) for row in rows(found.test)] == [40, 47, 40, 47]


def test_a_list_says_which_files_are_for_testing(tmp_path):
    write_files(
        tmp_path / "r", {"yes/a.wav": tone("", 0), "no/a.wav": tone("", 1), "no/b.wav": tone("", 2)}
    )
    listed = tmp_path / "testing_list.txt"
    listed.write_text("no/a.wav\n\nyes/a.wav\n", encoding="utf-8")
    found = read(tmp_path / "r", f"@{listed}")
    assert (found.train.names, found.test.names) == (("no",), ("no", "yes"))
    listed.write_text("a.wav\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"a.wav is 2 files of .*, expected one"):
        read(tmp_path / "r", f"@{listed}")
    with pytest.raises(UsageError, match="there is no file or folder"):
        read(tmp_path / "r", "@nowhere.txt")


@pytest.mark.parametrize(("pattern", "how"), [("*.flac", "no"), ("*", "every")])
def test_a_pattern_that_splits_nothing_is_refused(tmp_path, pattern, how):
    with pytest.raises(UsageError, match=f"fits {how} file of .*, such as high_0.wav"):
        read(write_files(tmp_path, tones()), pattern)


def test_sample_sizes_may_differ_and_values_do_not(tmp_path):
    half = np.full(50, 0.5)
    files = {
        "a_1.wav": wav_bytes((half * 32768).astype(np.int16)),
        "a_2.wav": wav_bytes(half, kind=3, bits=32),
        "b_3.wav": wav_bytes(half * 128 + 128, bits=8),
    }
    found = read(write_files(tmp_path, files), "*_3.wav")
    for part in (found.train, found.test):
        assert np.allclose(part.values * found.scale, 0.5)


def test_mixed_sampling_rates_name_two_files(tmp_path):
    write_files(tmp_path, {**tones(2), "low_9.wav": tone("low", 9, rate=16000)})
    with pytest.raises(
        UsageError, match="mixes sampling rates: high_0.wav has 8000 Hz, and low_9.wav 16000 Hz"
    ):
        read(tmp_path)


def test_several_channels_are_refused_or_averaged(tmp_path):
    two = np.array([[100, 300], [-200, 0]], dtype=np.int16)
    write_files(tmp_path, {"a_1.wav": wav_bytes(two), "b_1.wav": wav_bytes(two[:, 0])})
    with pytest.raises(UsageError, match="a_1.wav has 2 channels: give --mix to average them"):
        read(tmp_path)
    found = read(tmp_path, mix=True)
    values = [(row * found.scale * 32768).tolist() for row in rows(found.train)]
    assert values == [[200.0, -100.0], [100.0, -200.0]]


def test_empty_and_unlabelled_folders(tmp_path):
    with pytest.raises(UsageError, match="holds no .wav file"):
        read(tmp_path)
    write_files(tmp_path, {"hello.wav": tone("", 0)})
    with pytest.raises(UsageError, match="hello.wav has no label"):
        read(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    write_files(tmp_path, {**tones(2), "low_9.wav": tone("low", 9)[:-3]})
    with pytest.raises(DamagedFile, match="low_9.wav is cut short"):
        read(tmp_path)


def test_memory_is_asked_for_before_it_is_taken(tmp_path):
    with pytest.raises(UsageError, match="GiB of memory"):
        read(write_tar(tmp_path / "x.tar", tones()), memory=1000)


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    write_files(tmp_path, tones(2))
    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(AdderError, match="cannot read .*high_0.wav: Permission denied"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["../low_0.wav", "/tmp/low_0.wav", "a/../../low_0.wav"])
def test_paths_that_lead_out_of_a_tar_are_refused(tmp_path, name):
    path = write_tar(tmp_path / "x.tar", {**tones(2), name: tone("low", 0)})
    with pytest.raises(UsageError, match="is not to be trusted: it holds the path"):
        read(path)


def test_links_and_doubles_in_a_tar_are_refused(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("low_1.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(UsageError, match="low_1.wav is a link or a device"):
        read(path)
    write_tar(path, tones(2))
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("low_0.wav"))
    with pytest.raises(UsageError, match="two files named low_0.wav"):
        read(path)


def test_every_cut_of_a_tar_is_found(tmp_path):
    path = write_tar(tmp_path / "x.tar", tones(2))
    data = path.read_bytes()
    end = len(data.rstrip(b"\0"))
    for length in (0, 100, 512, 600, 1024, 2048, end - 100, end):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedFile, match=r"x\.tar is damaged"):
            read(path)
    for place in range(512, len(data), 512):
        if data[place + 257 : place + 262] == b"ustar":
            changed = bytearray(data)
            changed[place] ^= 1
            path.write_bytes(changed)
            with pytest.raises(DamagedFile, match="no end mark"):
                read(path)


def test_a_compressed_tar_is_told(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    with pytest.raises(DamagedFile, match=r"no uncompressed \.tar"):
        read(path)
