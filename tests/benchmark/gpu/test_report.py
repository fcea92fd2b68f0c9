"""The tables: every digit is there, with peers and without; who is no peer has no ratio."""

import math

import pytest

from adder.benchmark.gpu.figure import _shares
from adder.benchmark.gpu.report import page
from adder.benchmark.gpu.results import Results, ratios

from .tiny import tiny


def row(subject, section="operators", size="1x8", **values):
    head = {"section": section, "name": "length" if section == "lengths" else "scan", "size": size}
    return {**head, "subject": subject, "pass": "forward", **values}


def results_of(*rows) -> Results:
    return Results(tiny().to_dict(), rows=list(rows), complete=True)


def lengths_of(*subjects) -> list[list[str]]:
    rows = []
    for length in (512, 1 << 20):
        rows += [
            row(name, "lengths", str(length), length=length, seconds=length * seconds)
            for name, seconds in subjects
        ]
    for each in rows:
        if each["subject"] == "adder":
            each |= {"floor_seconds": each["seconds"] / 2, "of_floor": 0.5}
    (table,) = [part for part in page(results_of(*rows)).split("\n\n") if "length, forward" in part]
    lines = table.splitlines()
    assert len(set(map(len, lines))) == 1
    assert len(lines[0]) <= 80
    return [line.split() for line in lines[1:]]


def test_the_table_of_lengths_has_every_digit():
    ours, theirs, attention = ("adder", 1e-9), ("mamba_ssm", 3e-9), ("attention", 9.46875e-6)
    assert lengths_of(ours, attention) == [
        ["512", "0.000", "50%", "0.001", "4.848"],
        ["1,048,576", "0.524", "50%", "1.049", "9929"],
    ]
    assert lengths_of(ours, theirs, attention) == [
        ["512", "0.000", "50%", "0.001", "0.002", "4.848"],
        ["1,048,576", "0.524", "50%", "1.049", "3.146", "9929"],
    ]


def test_attention_and_the_transformer_are_no_peers():
    names = ("adder", "attention", "Transformer", "torch")
    (one,) = ratios([row(name, seconds=2.0) for name in names])
    assert one["peer"] == "torch"
    rows = [
        row("adder", "models", seconds=1e-3),
        row("Transformer", "models", seconds=2e-3, made_of="eager PyTorch"),
    ]
    text = page(results_of(*rows))
    assert "    Transformer, eager PyTorch" in text
    assert "2.00x" not in text


@pytest.mark.parametrize("differs", [0.5, math.inf, math.nan])
def test_a_peer_whose_result_is_not_ours_has_a_line_and_no_ratio(differs):
    far = row("fla", seconds=2.0, differs=differs, may_differ=0.03)
    near = row("torch", seconds=2.0, differs=0.01, may_differ=0.03)
    results = results_of(row("adder", seconds=1.0), far, {**far, "pass": "both"}, near)
    assert [each["peer"] for each in ratios(results.rows)] == ["torch"]
    text = " ".join(page(results).split())
    assert (
        text.count(f"fla: not compared at scan 1x8: its result differs from adder's by {differs}")
        == 1
    )


def test_runs_that_give_no_number_are_seen():
    text = page(results_of(row("adder", difference=math.nan)))
    assert "largest difference nan" in text


def test_a_share_above_all_of_the_floor_is_drawn():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    _shares(axes, [row("adder", of_floor=1.3)])
    assert axes.get_xlim()[1] >= 130
