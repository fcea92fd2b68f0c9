"""`adder generate`: streams, stops, continues from a state, and refuses what it cannot do."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adder import Stream
from adder.cli.main import main
from adder.training.run_folder import open_run

TEXT = "the snake adds, the adder hisses. " * 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model, three steps old."""
    folder = tmp_path_factory.mktemp("generate")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    sizes = ["--d-model", "16", "--n-layer", "2", "--batch-size", "2", "--length", "16"]
    source, output = str(folder / "text.txt"), str(folder / "run")
    assert main(["train", source, "-o", output, "--steps", "3", *sizes]) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def _threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


Captured = pytest.CaptureFixture[str]


def generate(run: Path, capsys: Captured, *arguments: str) -> str:
    """What the command prints where it succeeds."""
    assert main(["generate", str(run), *arguments]) == 0
    return capsys.readouterr().out


def refused(run: Path, capsys: Captured, *arguments: str) -> str:
    """The one line on stderr of a request that cannot be served."""
    assert main(["generate", str(run), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_the_prompt_and_its_continuation_are_printed(run: Path, capsys: Captured) -> None:
    text = generate(run, capsys, "the ", "--max-tokens", "30", "--seed", "1")
    assert text.startswith("the ")
    assert len(text) == 34
    assert text == generate(run, capsys, "the ", "--max-tokens", "30", "--seed", "1")
    assert text != generate(run, capsys, "the ", "--max-tokens", "30", "--seed", "2")


def test_it_writes_what_a_stream_writes_with_the_same_settings(run: Path, capsys: Captured) -> None:
    opened = open_run(run)
    stream = Stream(opened.model(), opened.vocabulary)
    stream.feed("the ")
    expected = "".join(
        str(piece)
        for piece in stream.generate(
            40,
            temperature=0.7,
            top_k=9,
            top_p=0.95,
            min_p=0.01,
            repetition_penalty=1.1,
            seed=3,
            stop=["q", "zz"],
        )
    )
    flags = ["--temperature", "0.7", "--top-k", "9", "--top-p", "0.95", "--min-p", "0.01"]
    flags += ["--repetition-penalty", "1.1", "--seed", "3", "--stop", "q", "--stop", "zz"]
    written = generate(run, capsys, "the ", "--max-tokens", "40", "--no-echo", *flags)
    assert written == expected


def test_it_stops_before_a_stop_string(run: Path, capsys: Captured) -> None:
    text = generate(run, capsys, "the ", "--seed", "1", "--no-echo")
    stop = text[20:23]
    cut = generate(run, capsys, "the ", "--seed", "1", "--no-echo", "--stop", stop)
    assert cut == text[: text.index(stop)]


def test_a_saved_state_continues_the_text_without_reading_it_again(
    run: Path, capsys: Captured, tmp_path: Path
) -> None:
    state = str(tmp_path / "state")
    whole = generate(run, capsys, "the ", "--max-tokens", "40", "--seed", "1")
    first = generate(
        run, capsys, "the ", "--max-tokens", "15", "--seed", "1", "--save-state", state
    )
    second = generate(run, capsys, "--max-tokens", "25", "--seed", "1", "--state", state)
    assert first + second == whole
    more = generate(run, capsys, " the", "--max-tokens", "0", "--state", state, "--json")
    assert json.loads(more)["position"] == 4 + 15 + 4


def test_json_is_one_object(run: Path, capsys: Captured) -> None:
    printed = generate(run, capsys, "the ", "--max-tokens", "5", "--seed", "1", "--json")
    facts = json.loads(printed)
    assert printed.count("\n") == 1
    text = generate(run, capsys, "the ", "--max-tokens", "5", "--seed", "1")
    assert facts["prompt"] + facts["text"] == text
    assert (facts["tokens"], facts["position"], facts["step"]) == (5, 9, 3)


def test_a_dash_reads_the_prompt_from_standard_input(
    run: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the ")))
    assert generate(run, capsys, "-", "--max-tokens", "0") == "the "
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    assert "byte 2 is 0xff" in refused(run, capsys, "-")


def test_an_empty_prompt_is_refused(run: Path, capsys: Captured) -> None:
    assert "the prompt is empty" in refused(run, capsys)
    assert "the prompt is empty" in refused(run, capsys, "")


def test_characters_that_the_vocabulary_lacks_are_named(run: Path, capsys: Captured) -> None:
    line = refused(run, capsys, "the Ünder 7")
    assert "'Ü'" in line
    assert "'7'" in line
    assert "'t'" not in line


def test_a_prompt_that_is_no_text_is_refused(run: Path, capsys: Captured) -> None:
    assert "not UTF-8" in refused(run, capsys, "ab\udcff")


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--temperature", "-1"], "temperature"),
        (["--top-k", "0"], "top_k"),
        (["--top-p", "2"], "top_p"),
        (["--min-p", "-1"], "min_p"),
        (["--repetition-penalty", "0"], "repetition_penalty"),
        (["--stop", ""], "stop string"),
        (["--checkpoint", "step-9"], "step-9"),
        (["--device", "abacus"], "abacus"),
        (["--threads", "0"], "--threads"),
        (["--save-state", "no/such/folder/state"], "no/such/folder"),
        (["--save-state", "/dev/null"], "/dev/null"),
    ],
)
def test_a_bad_flag_is_refused_by_name(
    run: Path, capsys: Captured, flags: list[str], word: str
) -> None:
    assert word in refused(run, capsys, "the ", *flags)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: Captured) -> None:
    assert str(tmp_path) in refused(tmp_path, capsys, "the ")


def test_a_damaged_or_missing_state_is_a_failure(
    run: Path, capsys: Captured, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    arguments = ["generate", str(run), "--state", str(state)]
    assert main(arguments) == 1
    assert f"No such file or directory: {state}" in capsys.readouterr().err
    state.write_bytes(b"something else")
    assert main(arguments) == 1
    assert str(state) in capsys.readouterr().err


def command(run: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "adder", "generate", str(run), "the ", *arguments]


def test_an_interrupt_keeps_the_text_so_far(run: Path) -> None:
    process = subprocess.Popen(
        command(run, "--max-tokens", "100000000"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    early = os.read(process.stdout.fileno(), 6)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (early + rest).startswith(b"the ")
    assert err == b"adder: interrupted\n"


def test_a_closed_pipe_ends_it_quietly(run: Path) -> None:
    process = subprocess.Popen(
        command(run, "--max-tokens", "100000000"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 6)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141
    process.stderr.close()
