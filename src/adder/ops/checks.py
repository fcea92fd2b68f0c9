"""What every operator checks before it computes. A message names the operator, the argument, what came and what
was expected."""

import numbers

import torch
from torch import Tensor
from torch.autograd import forward_ad

from adder.ops.dtypes import arithmetic


def expect_tensors(operator: str, **given: object) -> None:
    """Refuse what is no tensor where one is needed."""
    for name, each in given.items():
        if not isinstance(each, Tensor):
            raise TypeError(f"{operator}: {name} is a {type(each).__name__}, expected a tensor")


def expect_length(operator: str, length: object) -> int:
    """Return a whole number of steps, at least 1; NumPy's numbers are welcome, True is not."""
    if isinstance(length, torch.SymInt):
        return length  # type: ignore[return-value]
    if isinstance(length, bool) or not isinstance(length, numbers.Integral):
        raise TypeError(
            f"{operator}: length is {length!r}, a {type(length).__name__}, expected a whole number"
        )
    if length < 1:
        raise ValueError(f"{operator}: length is {length}, expected at least 1")
    return int(length)


def expect_positive(operator: str, name: str, tensor: Tensor) -> None:
    """Refuse step sizes that are not positive, on a CPU: elsewhere, looking would cost a synchronisation."""
    if tensor.device.type == "cpu" and not bool((tensor > 0).all()):
        worst = tensor[~(tensor > 0)][0].item()
        raise ValueError(f"{operator}: {name} has the value {worst:.6g}, expected positive steps")


def sizes_of(operator: str, name: str, tensor: Tensor, axes: str) -> dict[str, int]:
    """Return the size of each axis of `tensor`, as in sizes_of("scan", "u", u, "b l d")["l"]."""
    expect_tensors(operator, **{name: tensor})
    names = axes.split()
    if tensor.ndim != len(names):
        raise ValueError(
            f"{operator}: {name} has shape {tuple(tensor.shape)}, expected {len(names)} axes ({', '.join(names)})"
        )
    sizes = dict(zip(names, tensor.shape, strict=True))
    for axis, size in sizes.items():
        if size == 0:
            raise ValueError(
                f"{operator}: {name} has shape {tuple(tensor.shape)}: axis {axis} is empty"
            )
    return sizes


def expect(
    operator: str,
    name: str,
    tensor: Tensor | None,
    axes: str,
    sizes: dict[str, int],
    like: Tensor,
    dtypes: tuple[torch.dtype, ...],
) -> None:
    """Refuse a tensor whose shape, device or dtype is not what the operator's first argument asks for."""
    if tensor is None:
        return
    expect_tensors(operator, **{name: tensor})
    expected = tuple(sizes[axis] for axis in axes.split())
    if tuple(tensor.shape) != expected:
        named = ", ".join(axes.split())
        raise ValueError(
            f"{operator}: {name} has shape {tuple(tensor.shape)}, expected ({named}) = {expected}"
        )
    if tensor.device != like.device:
        raise ValueError(f"{operator}: {name} is on {tensor.device}, expected {like.device}")
    if tensor.dtype not in dtypes:
        allowed = " or ".join(dict.fromkeys(str(each) for each in dtypes))
        raise TypeError(f"{operator}: {name} is {tensor.dtype}, expected {allowed}")


def parameter_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """Return the types a parameter may have: that of the activations, or that of the arithmetic."""
    return dtype, arithmetic(dtype)


def expect_floating(operator: str, name: str, tensor: Tensor) -> None:
    """Refuse whole numbers and complex numbers where a real signal is meant."""
    expect_tensors(operator, **{name: tensor})
    if not tensor.is_floating_point():
        raise TypeError(f"{operator}: {name} is {tensor.dtype}, expected a floating point type")


def refuse_forward_mode(operator: str, *tensors: Tensor | None) -> None:
    """Refuse tensors that carry a tangent: PyTorch would drop it from an operator's output without a word."""
    if forward_ad._current_level < 0:
        return
    for each in tensors:
        if each is not None and forward_ad.unpack_dual(each).tangent is not None:
            raise NotImplementedError(
                f"{operator}: has no forward-mode derivative (jvp); use reverse mode (grad, backward)"
            )


def expect_packing(
    operator: str, seq_idx: Tensor | None, sizes: dict[str, int], like: Tensor
) -> None:
    """Refuse a seq_idx that is not (b, l) int32, or that goes backwards along the length.

    The values are looked at on a CPU, outside torch.compile: elsewhere that would cost a synchronisation,
    and a sequence that comes back is then a new sequence, as in `a a b a`.
    """
    if seq_idx is None:
        return
    expect(operator, "seq_idx", seq_idx, "b l", sizes, like, (torch.int32,))
    if torch.compiler.is_compiling() or seq_idx.device.type != "cpu":
        return
    backwards = seq_idx[:, 1:] < seq_idx[:, :-1]
    if bool(backwards.any()):
        row, step = (int(i) for i in backwards.nonzero()[0])
        raise ValueError(
            f"{operator}: seq_idx goes backwards in row {row}, from {int(seq_idx[row, step])} at step {step} "
            f"to {int(seq_idx[row, step + 1])}; number packed sequences in the order they lie in"
        )
