"""States: plain trees of tensors. Nothing is hidden in a module and nothing is changed in place."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from adder.errors import UsageError

State = Tensor | dict[str, "State"] | tuple["State", ...]


def map_state(f: Callable[[Tensor], Tensor], state: State) -> State:
    """Return the same tree with f of every tensor: `map_state(lambda x: x[:2], state)` keeps two batch rows."""
    if isinstance(state, Tensor):
        return f(state)
    if isinstance(state, tuple):
        return tuple(map_state(f, each) for each in state)
    return {name: map_state(f, each) for name, each in state.items()}


def detach_state(state: State) -> State:
    """Return the state cut off from the graph that made it: truncated back-propagation through time."""
    return map_state(torch.Tensor.detach, state)


def flatten_state(state: State, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors by dotted names, such as "0.conv": a form that safetensors can hold."""
    if isinstance(state, Tensor):
        return {prefix: state}
    items = enumerate(state) if isinstance(state, tuple) else state.items()
    flat: dict[str, Tensor] = {}
    for name, each in items:
        flat |= flatten_state(each, f"{prefix}.{name}" if prefix else str(name))
    return flat


def expect_parts(layer: str, state: State, *names: str) -> dict[str, Tensor]:
    """Return the state of a layer that holds tensors of these names; refuse that of another."""
    if isinstance(state, dict) and state.keys() == set(names):
        return state  # type: ignore[return-value]
    held = ", ".join(state) if isinstance(state, dict) else f"a {type(state).__name__}"
    raise UsageError(
        f"{layer}: the state holds {held}, expected {' and '.join(names)}, as initial_state gives"
    )


def unflatten_state(flat: Mapping[str, Tensor], like: State) -> State:
    """Return a tree of the form of `like` with the tensors of `flat`; the inverse of `flatten_state`.

    An axis that is empty in `like`, as the length of a key-value cache is, may be of any length.

    Raises:
        UsageError: a name is missing or unknown, or a tensor has another shape or dtype than in `like`.
    """
    template = flatten_state(like)
    for name in sorted(template.keys() ^ flat.keys()):
        raise UsageError(f"state: {name} is {'missing' if name in template else 'not known here'}")
    for name, expected in template.items():
        got = flat[name]
        fits = len(got.shape) == len(expected.shape) and all(
            want in (0, size) for want, size in zip(expected.shape, got.shape, strict=True)
        )
        if not fits or got.dtype != expected.dtype:
            raise UsageError(
                f"state: {name} is {tuple(got.shape)} {got.dtype}, "
                f"expected {tuple(expected.shape)} {expected.dtype}"
            )
    names = iter(template)
    return map_state(lambda _: flat[next(names)], like)
