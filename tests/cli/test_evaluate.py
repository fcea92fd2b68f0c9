import json
import math

import pytest

from adder.cli.main import main
from adder.data.text import split_by_position

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20
SIZES = {"d-model": 16, "n-layer": 2, "d-state": 4, "batch-size": 2, "length": 16, "steps": 4}
OPTIONS = [f"--{name}={value}" for name, value in SIZES.items()]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    path = tmp_path / "run"
    assert main(["train", str(tmp_path / "text.txt"), "--output", str(path), *OPTIONS]) == 0
    return path


def evaluate(capsys, *arguments: object) -> dict:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, code: int, *arguments: object) -> str:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments)]) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_default_is_the_validation_part(run, capsys):
    result = evaluate(capsys, run)
    validation = split_by_position(TEXT, 0.1)[1]
    assert result["tokens"] == result["bytes"] == len(validation) - 1
    assert result["step"] == 4
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    assert result["bits_per_byte"] == pytest.approx(result["loss"] / math.log(2))


def test_windows_do_not_change_the_result(run, tmp_path, capsys):
    path = tmp_path / "other.txt"
    path.write_text("the lazy fox jumps over the brown dog\n" * 5, encoding="utf-8")
    whole = evaluate(capsys, run, path)
    assert whole["tokens"] == 189
    pieces = evaluate(capsys, run, path, "--length", 10)
    assert pieces["bits_per_byte"] == pytest.approx(whole["bits_per_byte"], rel=1e-5)


def test_a_line_for_people(run, capsys):
    capsys.readouterr()
    assert main(["evaluate", str(run), "--checkpoint", "4"]) == 0
    line = capsys.readouterr().out
    assert "bits per byte, perplexity" in line
    assert "the validation part of" in line


def test_bytes_of_a_text_that_is_not_ascii(tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("größe " * 100, encoding="utf-8")
    run = tmp_path / "run"
    assert main(["train", str(path), "--output", str(run), *OPTIONS]) == 0
    result = evaluate(capsys, run, path)
    assert (result["tokens"], result["bytes"]) == (599, 799)
    bits = result["loss"] / math.log(2) * 599 / 799
    assert result["bits_per_byte"] == pytest.approx(bits)


def test_unknown_characters_are_named(run, tmp_path, capsys):
    path = tmp_path / "other.txt"
    path.write_text("THE FOX", encoding="utf-8")
    assert "lacks these characters of the text: 'E' 'F'" in refused(capsys, 2, run, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"\0", "is binary"), (b"x", "a single token")],
)
def test_unfit_source(run, tmp_path, capsys, content, message):
    path = tmp_path / "other.txt"
    path.write_bytes(content)
    assert message in refused(capsys, 2, run, path)


def test_what_is_no_run(tmp_path, run, capsys):
    assert "is no run" in refused(capsys, 2, tmp_path)
    assert "no file or folder" in refused(capsys, 2, run, tmp_path / "nowhere")
    assert "has no checkpoint step-9" in refused(capsys, 2, run, "--checkpoint", "step-9")


def test_damaged_run(run, capsys):
    (run / "vocabulary.json").write_text("{}", encoding="utf-8")
    assert "vocabulary.json is damaged" in refused(capsys, 1, run)


def test_run_without_a_validation_part(tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    run = tmp_path / "run"
    options = [*OPTIONS, "--validation", "0"]
    assert main(["train", str(path), "--output", str(run), *options]) == 0
    assert "trained on its whole text" in refused(capsys, 2, run)
