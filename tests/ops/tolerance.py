"""Tolerance is computed: an implementation may err a few times as much as the reference does in the same type."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]
# Units in the last place of the largest value, for what is rounded once more on the way.
ROUNDING = 4
FLOAT64 = {"output": 1e-12, "gradient": 1e-10}


def evaluate(function: Callable[..., Any], inputs: Inputs, seed: int = 0) -> dict[str, Tensor]:
    """Return every output of function(**inputs), and the gradient of every input it can be differentiated by.

    Outputs are weighted at random, with numbers that every type holds exactly.
    """
    leaves = {
        name: each.detach().requires_grad_() if _is_signal(each) else each
        for name, each in inputs.items()
    }
    outputs = function(**leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(seed)
    weights = [_weights(each, generator) for each in outputs]
    wanted = {name: each for name, each in leaves.items() if _is_signal(each)}
    gradients = torch.autograd.grad(outputs, list(wanted.values()), weights)
    return {
        **{f"output {i}": each.detach() for i, each in enumerate(outputs)},
        **{f"gradient of {name}": each for name, each in zip(wanted, gradients, strict=True)},
    }


def assert_as_good_as_reference(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Inputs,
    *,
    factor: float = 4,
    rounding: float = ROUNDING,
) -> None:
    """Hold every output and gradient of `function` against `reference`, both called with **inputs.

    In float64 and complex128 they must agree to 1e-12 of the largest value, gradients to 1e-10. Otherwise the
    error against the reference in float64 may be `factor` times the error of the reference in the inputs' own
    type, plus `rounding` units in the last place of the largest value.
    Types must agree with the reference's and with the inputs'.
    """
    got, same = evaluate(function, inputs), evaluate(reference, inputs)
    truth = evaluate(reference, {name: _widen(each) for name, each in inputs.items()})
    for name, expected in truth.items():
        assert got[name].shape == expected.shape, f"{name}: {got[name].shape}, not {expected.shape}"
        assert got[name].dtype == same[name].dtype, (
            f"{name}: {got[name].dtype}, not {same[name].dtype}"
        )
        if expected.numel() == 0:
            continue
        scale = expected.abs().max().item()
        error = (_widen(got[name]) - expected).abs().max().item()
        if got[name].dtype == expected.dtype:
            bound = FLOAT64[name.split()[0]] * scale
        else:
            bound = factor * (_widen(same[name]) - expected).abs().max().item()
            bound += rounding * torch.finfo(got[name].dtype).eps * scale
        assert error <= bound, (
            f"{name}: error {error:.3g} is above {bound:.3g}, largest value {scale:.3g}"
        )


def _is_signal(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def _weights(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(-8, 9, like.shape, generator=generator) / 8
    if like.is_complex():
        drawn = drawn + 1j * torch.randint(-8, 9, like.shape, generator=generator) / 8
    return drawn.to(like.dtype)


def _widen(x: Any) -> Any:
    if not _is_signal(x):
        return x
    return x.to(torch.complex128 if x.is_complex() else torch.float64)
