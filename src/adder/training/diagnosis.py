"""Where a NaN or an infinity comes from: the first layer and tensor that holds it."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from adder.layers.state import State, flatten_state


def find_nonfinite(
    model: nn.Module, state: State | None, compute_loss: Callable[[], tuple[Tensor, State | None]]
) -> str | None:
    """Name the first tensor that is not finite: a parameter, the state, a layer, or a gradient.

    Args:
        state: the state that the computation starts from.
        compute_loss: runs the model and returns its loss first; it is run once, with gradients.

    Returns:
        A phrase such as "the output of layers.3.mixer.in_proj (Linear)", or None where all is
        finite.
    """
    if (place := find_nonfinite_parameter(model)) is not None:
        return place
    for name, tensor in ({} if state is None else flatten_state(state)).items():
        if not _finite(tensor):
            return f"the carried state {name}, which holds {_kind(tensor)}"
    found: list[str] = []
    handles = [
        handle
        for name, module in model.named_modules()
        for handle in _watch(name or "the model", module, found)
    ]
    try:
        model.zero_grad(set_to_none=True)
        loss, _ = compute_loss()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    if not _finite(loss):
        return f"the loss itself, which is {_kind(loss)}, from finite logits"
    loss.backward()  # type: ignore[no-untyped-call]
    # The backward pass meets the last layers first.
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not _finite(parameter.grad):
            return f"the gradient of {name}, which holds {_kind(parameter.grad)}"
    return None


def find_nonfinite_parameter(model: nn.Module) -> str | None:
    """Name the first parameter that is not finite, None where all are."""
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the parameter {name}, which holds {_kind(parameter)}"
    return None


def _watch(
    name: str, module: nn.Module, found: list[str]
) -> Iterator[torch.utils.hooks.RemovableHandle]:
    label = f"{name} ({type(module).__name__})"

    def check(values: Any, what: str) -> None:
        for tensor in _tensors(values):
            if not found and not _finite(tensor):
                found.append(f"the {what} of {label}, which holds {_kind(tensor)}")

    yield module.register_forward_pre_hook(
        lambda _module, arguments, named: check((arguments, named), "input"), with_kwargs=True
    )
    yield module.register_forward_hook(lambda _module, _arguments, result: check(result, "output"))


def _tensors(values: Any) -> Iterator[Tensor]:
    """The floating tensors in arguments or results, however they are nested."""
    if isinstance(values, Tensor):
        if values.is_floating_point() or values.is_complex():
            yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif hasattr(values, "__dict__"):
        yield from _tensors(vars(values))


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _kind(tensor: Tensor) -> str:
    return "nan" if bool(torch.isnan(tensor).any()) else "inf"
