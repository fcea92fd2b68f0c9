"""What the *_on_gpu.py scripts share: their calls run in Triton's interpreter, or on a GPU where there is one."""

import importlib
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from implementations import poison
from tolerance import assert_as_good_as_reference, evaluate
from torch import Tensor
from triton_process import let_tensors_be_loop_bounds

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# A GPU's exponential errs by two units in the last place, a CPU's by one.
FACTOR = 4 if INTERPRETED else 8
Case = tuple[str, Callable[..., Any], Callable[..., Any], dict[str, Any]]


def on_device(function: Callable[..., Any], **inputs: Any) -> Any:
    """Call a function on the GPU, or in the interpreter: from and to the CPU, where the reference is."""
    if not INTERPRETED:
        inputs = {
            name: each.cuda() if isinstance(each, Tensor) else each for name, each in inputs.items()
        }
    found = function(**inputs)
    return found.cpu() if isinstance(found, Tensor) else tuple(each.cpu() for each in found)


def interpret(operator: str, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
    """In the interpreter: let these serve the CPU, and let memory that was not written be NaN."""
    if not INTERPRETED:
        return
    let_tensors_be_loop_bounds()
    interface = importlib.import_module(f"adder.ops.{operator}.interface")
    getattr(interface, f"_{operator}").register_kernel("cpu")(forward)
    getattr(interface, f"_{operator}_backward").register_kernel("cpu")(backward)
    poison(pytest.MonkeyPatch())


def hold(cases: Iterable[Case]) -> None:
    """Hold every case (name, function, reference, inputs) against its reference; print each before it starts."""
    for name, function, reference, inputs in cases:
        print(name, flush=True)
        assert_as_good_as_reference(partial(on_device, function), reference, inputs, factor=FACTOR)


def the_same_bits(function: Callable[..., Any], inputs: dict[str, Any]) -> None:
    """Five runs of one call."""
    first, *others = (evaluate(partial(on_device, function), inputs) for _ in range(5))
    for each in others:
        assert all(torch.equal(first[name], each[name]) for name in first)
