"""What this machine can do at most: bytes read from memory and floating-point operations, in a second."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adder.benchmark.timing import seconds

CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
TIMES_CACHE = 16  # how far beyond the last-level cache a tensor counts as memory
LEAST_BYTES, MOST_BYTES = 1 << 28, 1 << 31


class Machine:
    """Answers requests for limits and operators; nothing else is in its process."""

    def __init__(self, quick: bool):
        self.quick = quick
        self.facts: dict[str, Any] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """{kind: "bandwidth" | "float32" | "bfloat16", threads} or {kind: "operator", name, threads}."""
        torch.set_num_threads(request["threads"])
        kind = request["kind"]
        if kind == "bandwidth":
            return read_bandwidth(3 if self.quick else 7)
        if kind == "operator":
            from adder.benchmark.operators import of_name

            return {"passes": of_name(request["name"], self.quick)}
        size, repeats = (512, 3) if self.quick else (2048, 5)
        return multiply_rate(getattr(torch, kind), size, repeats)


def last_level_cache() -> int | None:
    """Bytes of the largest cache, None where the system does not tell."""
    sizes = [
        int(found[1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[found[2]]
        for path in CACHE.glob("index*/size")
        if (found := re.fullmatch(r"(\d+)([KMG])", path.read_text(encoding="ascii").strip()))
    ]
    return max(sizes, default=None)


def read_bandwidth(repeats: int = 5) -> dict[str, Any]:
    """Bytes per second at which memory is read: the best of a sum and a matrix times a vector."""
    size = min(MOST_BYTES, max(LEAST_BYTES, TIMES_CACHE * (last_level_cache() or 0)))
    data = torch.ones(size // 4)
    matrix, vector = data.view(-1, 4096), torch.ones(4096)
    ways: dict[str, Callable[[], object]] = {
        "torch.sum": data.sum,
        "torch.mv": lambda: torch.mv(matrix, vector),
        "torch.amax": data.amax,
    }
    return {"bytes": size, **_best(size, seconds(ways, repeats=repeats))}


def multiply_rate(dtype: torch.dtype, size: int, repeats: int) -> dict[str, Any]:
    """Floating-point operations per second of a product of square matrices, by each way PyTorch has."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    ways: dict[str, Callable[[], object]] = {"torch.mm": lambda: a @ b}
    if (packed := packed_linear(a, b)) is not None:
        ways["oneDNN"] = packed
    return {"size": size, **_best(2 * size**3, seconds(ways, repeats=repeats, warm_up=2))}


def packed_linear(x: Tensor, weight: Tensor) -> Callable[[], Tensor] | None:
    """x W^T through oneDNN with a packed weight, None where this PyTorch has no such operator."""
    if not (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return None
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def _best(work: int, times: dict[str, list[float]]) -> dict[str, Any]:
    """The best run of each way: a limit is what can be had, not what is usual."""
    rates = {way: work / min(each) for way, each in times.items()}
    way = max(rates, key=lambda name: rates[name])
    return {"rate": rates[way], "way": way, "rates": rates}
