"""`adder bench gpu` with a plan of tiny sizes on the CPU in place of the usual one, and without a GPU."""

import json

import pytest
import torch

from adder.benchmark.gpu import limits, plan
from adder.cli.main import main

from ..benchmark.gpu.tiny import tiny


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    """What the command line asks of the plan, which is tiny here."""
    calls = []

    def plan_of(sections: frozenset[str], quick: bool, minutes: float) -> plan.Plan:
        calls.append((sections, quick, minutes))
        return tiny(sections=sections, quick=quick, minutes=minutes, models={}, kernels=None)

    monkeypatch.setattr(plan, "plan_of", plan_of)
    return calls


def test_tables_json_and_figure(asked, capfd, tmp_path):
    files = ["--json", str(tmp_path / "g.json"), "--figure", str(tmp_path / "g.png")]
    assert main(["bench", "gpu", *files]) == 0
    assert asked == [(frozenset(plan.SECTIONS), False, plan.MINUTES)]
    text = capfd.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "selective_scan 1x8x4 fwd" in text
    facts = json.loads((tmp_path / "g.json").read_text(encoding="utf-8"))
    assert facts["complete"] is True
    assert len(facts["limits"]) == 4
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")


def test_parts_and_json_on_standard_output(asked, capfd):
    options = ["--only=lengths", "--only=block", "--quick", "--minutes=3", "--json=-"]
    assert main(["bench", "gpu", *options]) == 0
    assert asked == [(frozenset({"lengths", "block"}), True, 3.0)]
    facts = json.loads(capfd.readouterr().out)
    assert {row["section"] for row in facts["rows"]} == {"lengths", "block"}


@pytest.mark.usefixtures("asked")
def test_an_interrupt_keeps_what_was_measured(capfd, monkeypatch, tmp_path):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(limits, "_product", interrupt)
    assert main(["bench", "gpu", "--json", str(tmp_path / "g.json")]) == 130
    streams = capfd.readouterr()
    assert streams.err.strip().splitlines()[-1] == "adder: interrupted"
    assert "interrupted" in " ".join(streams.out.split())
    facts = json.loads((tmp_path / "g.json").read_text(encoding="utf-8"))
    assert facts["complete"] is False
    assert [row["limit"] for row in facts["limits"]] == ["copy", "exponentials"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_one_line(line_of):
    line = line_of(2, "bench", "gpu")
    assert "adder bench gpu: torch finds no GPU here; adder bench cpu measures this" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only=speed"], "--only speed: choose limits, operators"),
        (["--json=no/folder.json"], "--json no/folder.json: there is no folder no"),
        (["--figure=."], "--figure . is a folder"),
    ],
)
def test_a_wrong_option_is_one_line_before_anything_is_measured(arguments, words, line_of):
    assert words in line_of(2, "bench", "gpu", *arguments)
