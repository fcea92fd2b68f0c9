"""What an optimiser must know of a model's parameters."""

from typing import Any

from torch import nn


def parameter_groups(module: nn.Module, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameter groups for AdamW, each with the names of its parameters under "names".

    Weight decay holds for matrices only. It is off for A and D, which it would pull towards another
    time scale, for biases and for norm weights: everything of one axis, and what a layer lists in
    `no_weight_decay`. The learning rate is `lr`, but for what a layer gives a rate of its own in
    `learning_rates`. A parameter shared by two modules appears once.
    """
    free: set[int] = set()
    rates: dict[int, float] = {}
    for each in module.modules():
        own = dict(each.named_parameters(recurse=False))
        free |= {id(own[name]) for name in getattr(each, "no_weight_decay", ()) if name in own}
        rates |= {id(own[name]): rate for name, rate in getattr(each, "learning_rates", {}).items()}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        decay = 0.0 if parameter.ndim < 2 or id(parameter) in free else weight_decay
        rate = rates.get(id(parameter), lr)
        group = groups.setdefault(
            (decay, rate), {"params": [], "names": [], "lr": rate, "weight_decay": decay}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
