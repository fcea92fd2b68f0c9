"""`adder info`: what it says is what the dispatcher does, in 80 columns."""

import importlib
import json

import pytest
import torch

import adder.ops
from adder.cli import info as command
from adder.cli.main import main
from adder.ops import native

OPERATORS = [
    "linear",
    "linear_scan",
    "selective_scan",
    "state_space_dual",
    "short_convolution",
    "long_convolution",
    "diagonal_kernel",
    "dplr_kernel",
    "gated_norm",
    "rms_norm",
    "quantized_linear",
]
BESIDE = {"quantize", "QuantizedWeight"}  # what an operator is given, and no operator itself


def facts(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main(["info", "--json"]) == 0
    parsed = json.loads(capsys.readouterr().out)
    assert isinstance(parsed, dict)
    return parsed


def test_every_public_operator_is_listed_once_for_each_device(
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = facts(capsys)
    rows = [(row["operator"], row["device"]) for row in known["operators"]]  # type: ignore[attr-defined]
    assert rows == [(name, device) for name in OPERATORS for device in known["devices"]]  # type: ignore[attr-defined]
    public = {name for name in vars(adder.ops) if callable(getattr(adder.ops, name))}
    assert public == set(OPERATORS) | BESIDE


def test_the_implementation_on_the_cpu_is_the_one_that_dispatches(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = native.status()
    for row in facts(capsys)["operators"]:  # type: ignore[attr-defined]
        if row["device"] == "cpu":
            compiled = torch._C._dispatch_has_kernel_for_dispatch_key(
                f"adder::{command.OPERATORS[row['operator']]}", "CPU"
            )
            names = {"linear": ("oneDNN", "PyTorch")}
            ours = (f"C++ {status.isa}", "portable PyTorch")
            expected = names.get(row["operator"], ours)[0 if compiled else 1]
            assert row["implementation"] == expected


def test_without_the_compiled_module_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "no C++ compiler was found when adder was installed"
    monkeypatch.setattr(native, "status", lambda: native.NativeStatus(False, None, reason))
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: False)
    rows = [row for row in facts(capsys)["operators"] if row["operator"] != "linear"]  # type: ignore[attr-defined]
    assert [row["implementation"] for row in rows] == ["portable PyTorch"] * len(rows)  # type: ignore[attr-defined,arg-type]
    assert {row["reason"] for row in rows if row["device"] == "cpu"} == {reason}  # type: ignore[attr-defined]


def test_the_page_fits_80_columns_and_holds_the_facts(capsys: pytest.CaptureFixture[str]) -> None:
    known = facts(capsys)
    assert main(["info"]) == 0
    page = capsys.readouterr().out
    assert max(len(line) for line in page.splitlines()) <= 80
    for name in OPERATORS:
        assert f"\n{name} " in page
    assert str(known["torch"]) in page
    assert str(known["adder"]) in page


def test_long_reasons_are_wrapped() -> None:
    reason = "the kernels need GCC or Clang, and the compiler that was found is something else"
    lines = command._row("short_convolution", "cuda", "portable PyTorch", reason)
    assert len(lines) > 1
    assert max(len(line) for line in lines) <= 80
    assert " ".join(" ".join(lines).split()).endswith(reason)


def test_what_the_kernels_leave_out_is_named_for_every_operator() -> None:
    assert command.LEFT_OUT.keys() == set(command.OPERATORS.values())
    assert torch.float16 not in native.STORAGE
    assert torch.complex64 not in native.STORAGE


@pytest.mark.parametrize("reason", [None, "oneDNN is known to be faster only elsewhere"])
def test_who_multiplies_matrices_is_told_and_why(
    reason: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.import_module("adder.ops.linear.cpu"), "REFUSAL", reason)
    row = facts(capsys)["operators"][0]  # type: ignore[index]
    assert row["implementation"] == ("oneDNN" if reason is None else "PyTorch")
    assert row["reason"] == reason or reason is None
    assert command.LEFT_OUT["linear"] in row["reason"] or reason is not None


def test_a_triton_kernel_is_told_with_what_it_leaves_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a machine with a GPU: CUDA rows say what the dispatcher would do there."""
    monkeypatch.setattr(command, "_devices", lambda: {"cpu": "always", "cuda": "a GPU"})
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    for row in facts(capsys)["operators"]:  # type: ignore[attr-defined]
        if row["device"] == "cuda" and row["operator"] == "linear":
            assert row["implementation"] == "PyTorch"
        elif row["device"] == "cuda":
            operator = command.OPERATORS[row["operator"]]
            triton = registered(f"adder::{operator}", "CUDA")
            assert row["implementation"] == ("Triton" if triton else "portable PyTorch")
            assert (command.LEFT_OUT_CUDA.get(operator, "no kernel") in row["reason"]) or not triton
    assert command.LEFT_OUT_CUDA.keys() <= set(command.OPERATORS.values())
