"""What an optimiser must know of a model's parameters."""

from typing import Any

from torch import nn


def parameter_groups(module: nn.Module, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameter groups for AdamW, each with the names of its parameters under "names".

    Weight decay holds for matrices only. It is off for A and D, which it would pull towards another
    time scale, for biases and for norm weights: everything of one axis, and what a layer lists in
    `no_weight_decay`. A parameter shared by two modules appears once.
    """
    free: set[int] = set()
    for each in module.modules():
        for name in getattr(each, "no_weight_decay", ()):
            free.add(id(getattr(each, name)))
    groups: dict[float, dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        decay = 0.0 if parameter.ndim < 2 or id(parameter) in free else weight_decay
        group = groups.setdefault(
            decay, {"params": [], "names": [], "lr": lr, "weight_decay": decay}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
