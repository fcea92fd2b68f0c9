"""What a device can do at most in a second: bytes copied, exponentials, and operations of matrix products."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from adder.benchmark.gpu.clock import Call, Clock

Row = dict[str, Any]
LIMITS = ("copy", "exponentials", "bfloat16", "float32")


@dataclass(frozen=True)
class Work:
    """What an operator is made of: bytes, exponentials, and operations of products in a type.

    `bytes`: each input read once, each output written once.
    """

    bytes: float = 0.0
    exponentials: float = 0.0
    flops: float = 0.0
    type: str = "bfloat16"

    def floor(self, rates: dict[str, float]) -> tuple[float, str] | None:
        """Seconds of the work at these ceilings, and which of them takes the longest; None without the rates.

        Each is of one kind of unit: copies of the memory, exponentials of the special function units, bfloat16 products
        of the tensor cores, float32 products of what torch.mm takes (without TF32, the multiply-add units). Work that
        is moved to other units may take less: exponentials made of multiply-adds, a float32 product made of six of
        bfloat16.
        """
        amounts = {"copy": self.bytes, "exponentials": self.exponentials, self.type: self.flops}
        if any(amount and name not in rates for name, amount in amounts.items()):
            return None
        seconds = {name: amount / rates[name] for name, amount in amounts.items() if amount}
        if not seconds:
            return None
        name = max(seconds, key=lambda each: seconds[each])
        return seconds[name], name


def measure(name: str, clock: Clock, small: bool) -> Iterator[Row]:
    """Measure one of LIMITS; `small` is for a test, whose machine has little time."""
    makers: dict[str, Callable[[], tuple[Call, float, str]]] = {
        "copy": lambda: _copy(clock, 1 << 12 if small else 1 << 29),
        "exponentials": lambda: _exponentials(clock, small),
        "bfloat16": lambda: _product(clock, torch.bfloat16, 16 if small else 8192),
        "float32": lambda: _product(clock, torch.float32, 16 if small else 4096),
    }
    call, amount, way = makers[name]()
    row = clock.times([call]).to_dict()
    # Of the fastest tenth: a ceiling is what can be had. Products of many rounds slow down as the chip warms up.
    yield {"limit": name, "rate": amount / row["low"], "way": way, **row}


def _copy(clock: Clock, numbers: int) -> tuple[Call, float, str]:
    a = torch.randn(numbers, device=clock.device)
    b = torch.empty_like(a)
    return lambda: b.copy_(a), 2.0 * a.nbytes, f"copy of {a.nbytes / 1e9:.1f} GB"


def _exponentials(clock: Clock, small: bool) -> tuple[Call, float, str]:
    if clock.device.type == "cuda" and find_spec("triton") is not None:
        from adder.benchmark.gpu import exponentials

        call, count = exponentials.prepare(clock.device)  # type: ignore[no-untyped-call]
        return call, count, "exp2 in Triton, eight chains a thread"
    x = torch.rand(1 << 10 if small else 1 << 24, device=clock.device)
    return lambda: torch.exp2(x, out=x).neg_(), x.numel(), "torch.exp2"


def _product(clock: Clock, dtype: torch.dtype, size: int) -> tuple[Call, float, str]:
    a, b = (torch.randn(size, size, device=clock.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2.0 * size**3, f"torch.mm of {size}^3"
