"""`adder compare`: a table, JSON and a page; what is wrong is told before minutes are spent."""

import json
from pathlib import Path

import pytest

from adder.cli.main import main
from adder.comparison import plan, run

FAST = ["compare", "--quick", "--only=training", "--model=mamba", "--model=gru", "--device=cpu"]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SIZE", {"d_model": 16, "n_layer": 1})
    first = plan.quick_plan
    monkeypatch.setattr(plan, "quick_plan", lambda **given: first(lengths=(8, 16), **given))


def test_a_table_a_page_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html, numbers = tmp_path / "c.html", tmp_path / "c.json"
    assert main([*FAST, "--html", str(html), "--json", str(numbers)]) == 0
    said = capsys.readouterr().out
    assert "training: tokens per second" in said
    assert f"the page is {html}" in said
    assert html.read_text().startswith("<!doctype html>")
    found = json.loads(numbers.read_text())
    assert [row["layer"] for row in found["models"]] == ["mamba", "gru"]
    assert [row["length"] for row in found["training"]] == [8, 16, 8, 16]
    assert main([*FAST, "--json=-", "--html", str(html), "--force"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is True


def test_an_interrupt_keeps_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.Run, "_generation", stop)
    html = tmp_path / "c.html"
    assert main([*FAST, "--only=generation", "--html", str(html)]) == 130
    streams = capsys.readouterr()
    assert "interrupted" in html.read_text()
    assert "16 tokens" in streams.out
    assert streams.err.endswith("adder: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=rnn"], "--model rnn: choose mamba"),
        (["--only=speed"], "--only speed: choose training, generation or quality"),
        (["--task=parity"], "--task parity: choose text, selective-copying or induction-heads"),
        (["a.txt", "--only=training"], "a.txt would not be read: --only leaves quality out"),
        (["a.txt", "--task=induction-heads"], "a.txt would not be read: --task leaves text out"),
        (["--scaled"], "--quick and --scaled exclude each other"),
        (["--only=training", "--task=text"], "--task says what is learned: add --only quality"),
        (["--html=taken.html"], "--html taken.html is there already"),
        (["--html=."], "--html . is a folder"),
        (["--json=nowhere/a.json"], "--json nowhere/a.json: there is no folder nowhere"),
        (["--force"], "--force needs --html"),
        (["nothing.txt"], "nothing.txt"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.html").write_text("mine")
    assert main(["compare", "--quick", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert (tmp_path / "taken.html").read_text() == "mine"
