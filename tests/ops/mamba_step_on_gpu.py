"""The stacks that the GPU's kernels of one token are tried on, in Triton's interpreter and on a GPU alike."""

from collections.abc import Iterator
from typing import Any

import torch
from gpu_cases import INTERPRETED
from test_mamba_step import ROUNDING, flat, stack, start
from torch import Tensor
from triton_process import let_tensors_be_loop_bounds

from adder.ops.mamba_step import StackWeights
from adder.ops.mamba_step.gpu import GpuMambaStack
from adder.ops.mamba_step.reference import mamba_step_reference

DEVICE = "cpu" if INTERPRETED else "cuda"


def cases() -> Iterator[tuple[str, StackWeights, int]]:
    """Name, weights, streams. A program has 1 or 4 rows; a vector is read by blocks of a power of two."""
    for kind in ("float32", "bfloat16"):
        for streams in (1, 3):
            yield f"{kind} b={streams}", stack(kind, depth=3), streams
    yield "without biases", stack("float32", bias=False), 1
    yield "one tap, n = 5, r = 1", stack("float32", k=1, n=5, r=1), 2
    yield "blocks of columns", stack("float32", m=512, d=20, r=3, depth=1, vocab=1040), 1
    if not INTERPRETED:  # which is slow
        for streams in (1, 2, 17, 130):
            yield (
                f"130M, b={streams}",
                stack("bfloat16", vocab=5000, m=768, d=1536, r=48, depth=4),
                streams,
            )


def moved(value: Any) -> Any:
    """To the device, in the same containers."""
    if isinstance(value, Tensor):
        return value.to(DEVICE)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(moved, value))
    return [moved(each) for each in value] if isinstance(value, list) else value


def small_steps() -> StackWeights:
    """Steps of about 1e-3, as trained models have: a softplus must keep the digits of what is near zero."""
    weights = stack("float32", depth=1)
    blocks = [each._replace(dt_bias=each.dt_bias - 8) for each in weights.blocks]
    return weights._replace(blocks=blocks)


def compare(weights: StackWeights, streams: int, *, empty: bool = False) -> None:
    """Three tokens: one without `into`, two that write where the last but one was read, as a graph.

    The scan starts from states of zero where they are `empty`.
    """
    kind = "bfloat16" if weights.norm.dtype == torch.bfloat16 else "float32"
    ids, states = start(weights, streams)
    if empty:
        states = [(conv, ssm.zero_()) for conv, ssm in states]
    kernels, now, spare = (
        GpuMambaStack(moved(weights)),
        moved([list(each) for each in states]),
        None,
    )
    now = [tuple(each) for each in now]
    for _ in range(3):
        before = [(conv.cpu().clone(), ssm.cpu().clone()) for conv, ssm in now]
        logits, after = kernels.step(ids.to(DEVICE), now, spare)
        assert spare is None or all(a is b for a, b in zip(after, spare, strict=True))
        truth = flat(*mamba_step_reference(weights, ids, before))
        same = flat(*mamba_step_reference(weights, ids, before, torch.float32))
        for name, got in flat(logits, after).items():
            if not got.numel():  # the convolution of one tap has no state
                continue
            largest = truth[name].abs().max().item()
            own = (same[name] - truth[name]).abs().max().item()
            # A block has four matrices, each beside a vector that the reference rounds; PyTorch's layers round twice.
            roundings = len(weights.blocks) * (4 if streams == 1 else 8) * ROUNDING[kind]
            allowed = 4 * own + (16 * torch.finfo(torch.float32).eps + roundings) * largest
            error = (got.cpu().double() - truth[name]).abs().max().item()
            assert error <= allowed, (
                f"{name}: {error:.3g} above {allowed:.3g}, largest {largest:.3g}"
            )
        now, spare = after, now


def main() -> None:
    """Try every case; print each before it starts."""
    if INTERPRETED:
        let_tensors_be_loop_bounds()
    for name, weights, streams in cases():
        print(name, flush=True)
        compare(weights, streams)
    print("small steps", flush=True)
    compare(small_steps(), 1, empty=True)
    print("done")


if __name__ == "__main__":
    main()
