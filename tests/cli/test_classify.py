"""`adder classify`: a stream, step by step, from a wav file, from numbers, from raw samples."""

import io
import itertools
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from adder.cli.main import main
from adder.training import open_run

from ..data.sources import tone, tones, wav_bytes


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "high_20.wav"
    path.write_bytes(tone("high", 20))
    return path


def samples(path) -> np.ndarray:
    return np.frombuffer(path.read_bytes()[-360:], "<i2")


@pytest.fixture
def stdin(monkeypatch):
    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


def test_a_wav_file_ends_in_its_class(sound_run, wav, capsys):
    capsys.readouterr()
    assert main(["classify", str(sound_run), str(wav)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 64, 0.008 s: ")
    assert lines[-1].startswith("high, probability ")
    assert lines[-1].endswith(", after 180 steps")
    assert max(map(len, lines)) <= 80


def test_every_way_to_read_gives_the_same(sound_run, wav, tmp_path, as_json, stdin):
    model = open_run(sound_run).classifier()
    whole = as_json("classify", sound_run, wav)
    assert (whole["class"], whole["steps"]) == ("high", 180)
    assert sum(whole["probabilities"].values()) == pytest.approx(1.0)
    assert list(whole["probabilities"]) == list(model.config.labels)
    for chunk in (1, 7, 1000):
        assert as_json("classify", sound_run, wav, "--chunk", chunk)["probability"] == (
            pytest.approx(whole["probability"], rel=1e-5)
        )
    numbers = tmp_path / "numbers.txt"
    numbers.write_text("\n".join(str(x / 32768) for x in samples(wav)))
    raw = tmp_path / "raw"
    raw.write_bytes(samples(wav).tobytes())
    for arguments in ([numbers], [numbers, "--chunk", 50], [raw, "--raw"]):
        found = as_json("classify", sound_run, *arguments)
        assert found["steps"] == 180
        assert found["probability"] == pytest.approx(whole["probability"], rel=1e-5)
    for data, options in ((numbers.read_bytes(), []), (raw.read_bytes(), ["--raw"])):
        stdin(data)
        found = as_json("classify", sound_run, "-", *options)
        assert found["probability"] == pytest.approx(whole["probability"], rel=1e-5)


def test_lines_at_an_interval(sound_run, wav, as_json, stdin):
    seen = as_json("classify", sound_run, wav, "--every", 30)["seen"]
    assert [each["step"] for each in seen] == [30, 60, 90, 120, 150, 180]
    stdin(b"".join(b"%f\n" % (x / 32768) for x in samples(wav)))
    again = as_json("classify", sound_run, "-", "--every", 60)["seen"]
    assert [each["step"] for each in again] == [60, 120, 180]
    assert again[0]["probability"] == pytest.approx(seen[1]["probability"], rel=1e-5)


def test_a_line_only_where_the_class_changes(sound_run, wav, as_json):
    seen = [each["class"] for each in as_json("classify", sound_run, wav, "--chunk", 1)["seen"]]
    assert seen[-1] == "high"
    assert all(one != other for one, other in itertools.pairwise(seen))


def test_series_of_several_channels(series_run, tmp_path, as_json, line_of, wav):
    path = tmp_path / "series.txt"
    path.write_text("".join(f"{x:.2f}, {x:.2f}\n" for x in np.linspace(0, -1, 9)))
    assert as_json("classify", series_run, path)["class"] == "down"
    path.write_text("1\n")
    assert "line 1: 1 numbers, expected 2" in line_of(2, "classify", series_run, path)
    assert "samples of one channel, and the model reads 2 channels" in line_of(
        2, "classify", series_run, wav
    )


def test_another_sampling_rate_needs_the_flag(sound_run, tmp_path, as_json, line_of, stdin):
    path = tmp_path / "x.wav"
    wave = np.sin(2 * np.pi * 1500 / 16000 * np.arange(240))
    path.write_bytes(wav_bytes((wave * 12000).astype(np.int16), 16000))
    line = line_of(2, "classify", sound_run, path)
    assert "has 16000 Hz, and the model was trained at 8000 Hz: give --rate auto" in line
    found = as_json("classify", sound_run, path, "--rate", "auto")
    assert (found["rate"], found["class"]) == (0.5, "high")
    raw = path.read_bytes()[-480:]
    stdin(raw)
    line = line_of(2, "classify", sound_run, "-", "--raw", "--sampling-rate", 16000)
    assert "standard input has 16000 Hz" in line
    stdin(raw)
    options = ("--raw", "--sampling-rate", 16000, "--rate", "auto")
    assert as_json("classify", sound_run, "-", *options)["class"] == "high"


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (b"", [], "standard input is empty"),
        (b"\n\n", [], "standard input is empty"),
        (b"0.1\nabc\n", [], "standard input, line 2: 'abc' is no number"),
        (b"inf\n", [], "line 1: inf is not finite"),
        (b"", ["--raw"], "standard input is empty"),
        (b"\1\2\3", ["--raw"], "end in the middle of one"),
        (b"1\n", ["--rate", "auto"], "the sampling rate of standard input is not known"),
        (b"1\n", ["--rate", "0"], "--rate must be a positive number"),
        (b"1\n", ["--mix"], "--mix is for wav files"),
        (b"1\n", ["--sampling-rate", "0"], "--sampling-rate must be a positive number"),
    ],
)
def test_streams_that_cannot_be_read(sound_run, stdin, capsys, data, options, message):
    capsys.readouterr()
    stdin(data)
    assert main(["classify", str(sound_run), "-", *options]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_files_that_cannot_be_read(sound_run, text_run, tmp_path, line_of, wav):
    assert "there is no file or folder" in line_of(2, "classify", sound_run, tmp_path / "x.wav")
    assert "there is no file or folder" in line_of(2, "classify", sound_run, tmp_path / "x")
    assert "Is a directory" in line_of(1, "classify", sound_run, tmp_path)
    wav.write_bytes(wav.read_bytes()[:-1])
    assert "high_20.wav is cut short" in line_of(1, "classify", sound_run, wav)
    two = np.zeros((4, 2), dtype=np.int16)
    wav.write_bytes(wav_bytes(two))
    assert "has 2 channels: give --mix" in line_of(2, "classify", sound_run, wav)
    assert main(["classify", str(sound_run), str(wav), "--mix"]) == 0
    assert "leave --sampling-rate out" in line_of(
        2, "classify", sound_run, wav, "--sampling-rate", 8000
    )
    assert "is a language model, not a classifier" in line_of(2, "classify", text_run, wav)
    assert "is no run" in line_of(2, "classify", tmp_path, wav)


def test_a_classifier_writes_nothing(sound_run, line_of):
    line = line_of(2, "generate", sound_run, "hello")
    assert "is a classifier, not a language model: adder evaluate and adder classify" in line


def test_an_interrupt_ends_the_stream_with_its_class(sound_run):
    process = subprocess.Popen(
        [sys.executable, "-m", "adder", "classify", str(sound_run), "-", "--every", "10"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("0.1\n" * 10)
    process.stdin.flush()
    assert process.stdout.readline().startswith("step 10, 0.001 s: ")  # while the stream is open
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)  # with the stream open still
    out, err = process.communicate()
    assert process.returncode == 130
    assert out.strip().endswith("after 10 steps")
    assert err == "adder: interrupted\n"


def test_a_closed_pipe_is_quiet(sound_run, tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("0.1\n" * 5000)
    script = f"{sys.executable} -m adder classify {sound_run} {path} --every 1 | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 141
    assert done.stderr == ""


def test_tones_of_the_tests_are_told_apart(sound_run, tmp_path, as_json):
    for name, data in tones(2).items():
        (tmp_path / name).write_bytes(data)
        assert as_json("classify", sound_run, tmp_path / name)["class"] == name.split("_")[0]
