"""Peers compute what adder computes, are measured where they can be imported, and are named where they cannot."""

import sys

import pytest
import torch

from adder.benchmark.gpu import cases, peers
from adder.benchmark.gpu.report import page
from adder.benchmark.gpu.results import Results
from adder.benchmark.gpu.run import Run

from . import fakes
from .tiny import tiny


@pytest.fixture
def installed(monkeypatch) -> dict[str, str]:
    for name, module in fakes.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return peers.find_peers()


def test_versions_of_what_is_there(installed):
    assert installed == {
        **{"torch": torch.__version__, "mamba_ssm": "2.0", "causal_conv1d": "1.0", "fla": "0.5"}
    }


def test_what_cannot_be_imported_is_named(monkeypatch):
    for name in [each for each in sys.modules if each.startswith(("mamba_ssm", "fla"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(
        peers, "find_spec", lambda name: None if name == "mamba_ssm" else sys.__spec__
    )

    def load(name: str) -> None:
        raise OSError(f"{name}.so: undefined\nsymbol")

    monkeypatch.setattr(peers, "import_module", load)
    found = peers.find_peers()
    assert found["mamba_ssm"] == "not installed"
    assert found["fla"] == "error: OSError: fla.so: undefined symbol"
    assert not any(peers.is_there(found, name) for name in ("mamba_ssm", "fla"))
    text = " ".join(page(Results(tiny().to_dict(), peers=found)).split())
    assert "peer mamba_ssm: not installed" in text
    assert "peer fla: error: OSError: fla.so: undefined symbol" in text


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


@pytest.mark.usefixtures("installed")
def test_the_peers_scans_are_ours():
    plan, shape = tiny(), (2, 16, 4)
    u, delta, A, B, C, D, z, bias = inputs = cases.draw_scan(plan.device, shape, plan.states)
    y = cases.our_scan(*inputs)
    across = [each.mT.contiguous() for each in (u, delta, B, C, z)]
    theirs = peers.mamba_ssm_scan(*across[:2], A, *across[2:4], D, across[4], bias)
    assert relative(theirs.mT, y) < 1e-2
    assert relative(peers.torch_loop(*inputs), y) < 1e-2


def test_the_peers_duals_are_ours(installed):
    for ours, *others in [list(cases.duals(tiny(), installed, (1, 12, 2)))]:
        inputs = ours.draw()
        for each in others:
            assert relative(each.function(*inputs), ours.function(*inputs)) < 2e-2, each.subject


def test_torch_and_causal_conv1d_compute_what_is_ours(installed):
    found = {}
    for case in cases.memory_bound(tiny(), installed, (2, 12, 8)):
        found.setdefault(case.name, []).append(case)
    assert [each.subject for each in found["short_convolution"]] == [
        *("adder", "causal_conv1d", "torch"),
    ]
    for name, (ours, *others) in found.items():
        x, *rest = ours.draw()
        for each in others:
            across = name == "short_convolution"
            y = each.function(x.mT.contiguous() if across else x, *rest)
            assert relative(y.mT if across else y, ours.function(x, *rest)) < 1e-2, each.subject


@pytest.mark.usefixtures("installed")
def test_they_are_measured_beside_adder():
    plan = tiny(kernels=None)
    results = Results(plan.to_dict())
    Run(plan, results, lambda _: None).run()
    assert results.left_out == []
    who = {
        name: {row["subject"] for row in results.of(name)}
        for name in ("operators", "lengths", "block", "models")
    }
    assert who == {
        "operators": {"adder", "mamba_ssm", "causal_conv1d", "fla", "torch"},
        "lengths": {"adder", "mamba_ssm", "attention"},
        "block": {"adder", "mamba_ssm"},
        "models": {"adder", "mamba_ssm", "Transformer"},
    }
    differences = {
        row["subject"]: (row["differs"], row["may_differ"])
        for row in results.rows
        if "differs" in row
    }
    assert set(differences) == {"mamba_ssm", "causal_conv1d", "fla", "torch"}
    assert all(far <= may == 2**-5 for far, may in differences.values())
    text = page(results)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("    mamba_ssm") > 5


@pytest.mark.parametrize(
    "wrong", [lambda y: 1.1 * y, lambda y: y * torch.nan, lambda y: y[..., :-1]]
)
def test_a_peer_that_computes_something_else_is_not_compared(wrong, monkeypatch):
    right = peers.torch_convolution
    monkeypatch.setattr(peers, "torch_convolution", lambda *inputs: wrong(right(*inputs)))
    plan = tiny(scans=(), heads=(), kernels=None, sections=frozenset({"operators"}))
    results = Results(plan.to_dict())
    Run(plan, results, lambda _: None).run()
    assert results.left_out == []
    assert {each["name"] for each in results.to_dict()["ratios"]} == {"rms_norm", "gated_norm"}
    assert "torch: not compared at short_convolution 1x8x4" in page(results)
