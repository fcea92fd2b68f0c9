"""oneDNN's matrix product through PyTorch: where it takes the place of F.linear, and why.

`torch.ops.mkldnn._linear_pointwise` is what torch.compile lowers a dense layer to. It is not public, so its schema is
compared before it is used, and F.linear serves where it is another. On AMD's processors F.linear multiplies float32 by
MKL, which uses half of their vector width; oneDNN uses all of it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SCHEMA = (
    "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, "
    "str? algorithm) -> Tensor Y"
)
# Multiply-adds from which oneDNN is faster: below, laying out the weight anew costs more than it saves.
WORTH, WORTH_TRANSPOSED = 2**24, 2**26


def missing() -> str | None:
    """Say why PyTorch's oneDNN product cannot be called here; None where it can."""
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch was built without oneDNN"
    try:
        found = str(torch.ops.mkldnn._linear_pointwise.default._schema)
    except AttributeError:
        found = "nothing of that name"
    return None if found == SCHEMA else f"this PyTorch has another _linear_pointwise: {found}"


def refusal() -> str | None:
    """Say why F.linear serves every call on this machine; None where oneDNN serves the large ones."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if not (known.get("cpu_name", "").startswith("AMD") and known.get("avx512_f")):
        return "oneDNN is known to be faster only on AMD's processors with AVX-512"
    return missing()


REFUSAL = refusal()


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is the faster way to x W^T: float32 on this CPU, and enough of it."""
    if REFUSAL is not None or x.device.type != "cpu":
        return False
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    work = x.numel() * weight.shape[0]
    return work >= (WORTH if x.is_contiguous() else WORTH_TRANSPOSED)


def autocasts(device_type: str) -> bool:
    """Whether autocast is on there. The meta device and others have none, and PyTorch refuses to be asked."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what F.linear makes of it, in the types given, though autocast may be on: in a backward pass it can be."""
    if not autocasts(x.device.type):
        return F.linear(x, weight, bias).contiguous()
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, weight, bias).contiguous()


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W^T + b: float32 by oneDNN, unless `torch.backends.mkldnn.flags(enabled=False)` says no."""
    if x.dtype != torch.float32 or not torch.backends.mkldnn.enabled:
        return plain(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    if bias is None and not rows.is_contiguous() and _swapping_copies_less(rows, weight):
        return _product(weight, rows, None).t().contiguous().view(*x.shape[:-1], -1)
    return _product(rows, weight, bias).view(*x.shape[:-1], -1)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN copies an x that is not contiguous, and reads a weight that is transposed as it is."""
    if 1 not in weight.stride():
        weight = weight.contiguous()
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def _swapping_copies_less(x: Tensor, weight: Tensor) -> bool:
    """x W^T = (W x^T)^T: either x is copied, or what W lacks to be contiguous and the result."""
    swapped = weight.shape[0] * x.shape[0] + (0 if weight.is_contiguous() else weight.numel())
    return swapped < x.numel()
