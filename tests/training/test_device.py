import pytest
import torch

from adder.errors import UsageError
from adder.training import device as device_module
from adder.training.device import autocast, choose_device, choose_precision

CPU = torch.device("cpu")


def test_auto_is_a_device_that_works():
    assert torch.ones(1, device=choose_device("auto")).item() == 1.0


@pytest.mark.parametrize("name", ["gpu", "", "meta", "meta:x", "cuda:99", "xpu"])
def test_absent_device_is_refused(name):
    with pytest.raises(UsageError, match="is not here"):
        choose_device(name)


@pytest.mark.parametrize(
    ("has", "d_model", "expected"),
    [
        ("avx512_bf16", 64, "bfloat16"),
        ("amx_bf16", 64, "bfloat16"),
        ("amx_bf16", 63, "float32"),
        ("avx512_vnni", 4096, "float32"),
    ],
)
def test_rule_of_auto_on_a_cpu(monkeypatch, has, d_model, expected):
    monkeypatch.setattr(device_module, "_cpu_has", lambda flag: flag == has)
    assert choose_precision("auto", CPU, d_model) == expected


def test_named_precision_is_kept():
    assert choose_precision("bfloat16", CPU, 16) == "bfloat16"
    with pytest.raises(UsageError, match="choose auto, float32 or bfloat16"):
        choose_precision("float16", CPU, 16)


@pytest.mark.parametrize(
    ("precision", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_autocast(precision, expected):
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
