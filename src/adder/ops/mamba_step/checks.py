"""What every implementation of a step asks of the weights and of the states."""

from collections.abc import Sequence

import torch
from torch import Tensor

from adder.ops.mamba_step.weights import Mamba2BlockWeights, StackWeights, States

NAME = "mamba_step"


def check_shapes(weights: StackWeights) -> None:
    one = weights.blocks[0]
    if isinstance(one, Mamba2BlockWeights):
        _check_heads(one)
    expected, m = one.shapes(), one.sizes[0]
    for i, block in enumerate(weights.blocks):
        if type(block) is not type(one) or block.sizes != one.sizes:
            raise ValueError(
                f"{NAME}: block {i} is a {type(block).__name__} of sizes {block.sizes}, "
                f"and block 0 a {type(one).__name__} of {one.sizes}"
            )
        for name, shape in expected.items():
            each = getattr(block, name)
            if each is not None and tuple(each.shape) != shape:
                raise ValueError(
                    f"{NAME}: {name} of block {i} has shape {tuple(each.shape)}, expected {shape}"
                )
    for name, matrix in (("embedding", weights.embedding), ("head", weights.head)):
        if matrix.shape[0] < weights.vocab_size or matrix.shape[1] != m:
            raise ValueError(
                f"{NAME}: {name} has shape {tuple(matrix.shape)}, expected ({weights.vocab_size} or more, {m})"
            )
    if tuple(weights.norm.shape) != (m,):
        raise ValueError(f"{NAME}: norm has shape {tuple(weights.norm.shape)}, expected ({m},)")


def _check_heads(block: Mamba2BlockWeights) -> None:
    d, h, g, w = block.out_proj.shape[1], *block.A_log.shape, block.groups, len(block.conv_weight)
    if g < 1 or d % h or h % g or w <= d or (w - d) % (2 * g):
        raise ValueError(
            f"{NAME}: {h} heads must divide {d} inner channels, {g} groups the heads, and twice the groups the "
            f"{w - d} channels of B and C"
        )


def check_ids(weights: StackWeights, ids: Tensor) -> None:
    """Refuse what is not one whole number for each stream, where the weights are."""
    device = weights.norm.device
    if ids.ndim != 1 or not ids.numel() or ids.dtype != torch.int64 or ids.device != device:
        raise ValueError(
            f"{NAME}: ids is {ids.dtype} {tuple(ids.shape)} on {ids.device}, expected int64 (b,) on {device}"
        )


def check_states(weights: StackWeights, name: str, states: States, b: int) -> None:
    """Refuse states of another number, shape, type or device than b streams of this stack have."""
    if len(states) != len(weights.blocks):
        raise ValueError(f"{NAME}: {name} of {len(states)} blocks, expected {len(weights.blocks)}")
    conv_size, ssm_size = weights.blocks[0].state_shapes(b)
    device = weights.norm.device
    expected = (("conv", conv_size, weights.norm.dtype), ("ssm", ssm_size, torch.float32))
    for i, pair in enumerate(states):
        for (part, size, dtype), each in zip(expected, pair, strict=True):
            if each.shape != size or each.dtype != dtype or each.device != device:
                raise ValueError(
                    f"{NAME}: {part} of block {i} in {name} is {each.dtype} {tuple(each.shape)} on "
                    f"{each.device}, expected {dtype} {size} on {device}"
                )


def check_apart(read: Sequence[Tensor], written: Sequence[Tensor]) -> None:
    """Refuse to write where something is read, or twice in one place."""
    if not all(each.is_contiguous() for each in written) or _overlap(read, written):
        raise ValueError(
            f"{NAME}: into must be contiguous, and in memory apart from states and from itself"
        )


def _overlap(read: Sequence[Tensor], written: Sequence[Tensor]) -> bool:
    """Whether a tensor that is written shares memory with another; those that are read may share theirs."""
    spans = sorted(
        (each.data_ptr(), each.data_ptr() + each.nbytes, is_written)
        for tensors, is_written in ((read, False), (written, True))
        for each in tensors
        if each.numel()
    )
    end, end_of_written = 0, 0
    for start, stop, is_written in spans:
        if start < (end if is_written else end_of_written):
            return True
        end = max(end, stop)
        end_of_written = max(end_of_written, stop) if is_written else end_of_written
    return False
