"""How a test gets hold of the reference, the portable implementation and the kernels of each instruction set."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS

import adder.ops  # noqa: F401  (registers every operator)
from adder.ops import native


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operator, in service for the length of a test."""

    name: str

    def of(self, public: Callable[..., Any], reference: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function to call: the reference, or the public one with this implementation below."""
        return reference if self.name == "reference" else public


def names() -> list[str]:
    """Return every implementation that this machine runs."""
    return ["reference", "portable", *(f"cpu {isa}" for isa in isas())]


def isas() -> list[str]:
    """Return the instruction sets that this machine runs kernels of."""
    kernels = native.module()
    if kernels is None:
        return []
    first, runs = kernels.isa(), []
    for isa in ("portable", "avx2", "avx512"):
        try:
            kernels.use_isa(isa)
        except ValueError:
            continue
        runs.append(isa)
    kernels.use_isa(first)
    return runs


@contextmanager
def serving(name: str) -> Iterator[None]:
    """Let this implementation serve every operator of adder on the CPU."""
    kernels = native.module()
    with ExitStack() as stack:
        if name.startswith("cpu "):
            stack.callback(kernels.use_isa, kernels.isa())
            kernels.use_isa(name.removeprefix("cpu "))
        elif kernels is not None:
            for qualified, operator in list(OPDEFS.items()):
                if qualified.startswith("adder::"):
                    stack.enter_context(operator.set_kernel_enabled("cpu", enabled=False))
        yield


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torch.empty, empty_like and new_empty return NaN."""

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def filled(*args: Any, **options: Any) -> Tensor:
            out = make(*args, **options)
            return out.fill_(torch.nan) if out.is_floating_point() or out.is_complex() else out

        return filled

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


def bits_for_threads(call: Callable[[], dict[str, Tensor]]) -> None:
    """Assert that a call gives the same bits on 1, 2, 3 and 5 threads."""
    if native.module() is None:
        pytest.skip(
            "the kernels promise it, PyTorch's sums do not, and adder was not compiled here"
        )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = call()
        for threads in (2, 3, 5):
            torch.set_num_threads(threads)
            for name, tensor in call().items():
                assert torch.equal(tensor, alone[name]), f"{name} changes with {threads} threads"
    finally:
        torch.set_num_threads(before)
