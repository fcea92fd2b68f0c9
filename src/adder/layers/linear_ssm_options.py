"""What S4 and S4D can be told, and what is refused."""

import math
from collections.abc import Callable, Mapping
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from adder.errors import UsageError

# How a parameter that may be any number becomes a positive one, and back.
TRANSFORMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "exp": (torch.exp, torch.log),
    "softplus": (F.softplus, lambda x: x + torch.log(-torch.expm1(-x))),
    "relu": (F.relu, lambda x: x),
    "sigmoid": (torch.sigmoid, torch.logit),
    "none": (lambda x: x, lambda x: x),
}


class Options(TypedDict, total=False):
    """Keyword arguments that S4 and S4D share; see `LinearSSM`."""

    channels_out: int
    bidirectional: bool
    n_ssm: int | None
    dt_min: float
    dt_max: float
    dt_tie: bool
    dt_transform: str
    dt_fast: bool
    real_transform: str
    lr: float | Mapping[str, float] | None
    l_max: int | None
    bandlimit: float | None
    drop_kernel: float
    swap_channels: bool
    deterministic: bool


def check_options(
    layer: str,
    *,
    sizes: Mapping[str, object],
    optional_sizes: Mapping[str, object],
    numbers: Mapping[str, object],
    flags: Mapping[str, object],
    transforms: Mapping[str, object],
) -> None:
    """Refuse a value that is not of its kind; the message names the layer, the option and the value."""
    given = {name: size for name, size in optional_sizes.items() if size is not None}
    for name, size in {**sizes, **given}.items():
        if not (isinstance(size, int) and not isinstance(size, bool) and size >= 1):
            raise UsageError(f"{layer}: {name} is {size!r}, expected a whole number of at least 1")
    for name, number in numbers.items():
        if not (is_positive(number) or (number is None and name == "bandlimit")):
            raise UsageError(f"{layer}: {name} is {number!r}, expected a positive number")
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise UsageError(f"{layer}: {name} is {flag!r}, expected True or False")
    for name, kind in transforms.items():
        allowed = ("exp", "softplus") if name == "dt_transform" else tuple(TRANSFORMS)
        if kind not in allowed:
            raise UsageError(f"{layer}: {name} {kind!r} is not one of {', '.join(allowed)}")


def learning_rates(layer: str, lr: float | Mapping[str, float] | None) -> dict[str, float | None]:
    """The rate of each kind of parameter: dt, A, P, B, and C where a mapping names it."""
    if isinstance(lr, Mapping):
        rates: dict[str, float | None] = dict(lr)
    else:
        rates = dict.fromkeys(("dt", "A", "P", "B"), lr)
    for name, rate in rates.items():
        if name not in ("dt", "A", "P", "B", "C"):
            raise UsageError(f"{layer}: lr has the key {name}, expected dt, A, P, B or C")
        if not (rate is None or rate == 0 or is_positive(rate)):
            raise UsageError(f"{layer}: lr of {name} is {rate!r}, expected a number of at least 0")
    return rates


def is_positive(x: object) -> bool:
    """Whether x is a finite number above 0."""
    return isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < math.inf


def what_came(x: object) -> str:
    """An argument that should be a tensor of another shape, as it is written in messages."""
    return f"has shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"is a {type(x).__name__}"
