"""The short convolution inside a block, and what padding in front of a row means to it."""

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor, nn

from adder.errors import UsageError
from adder.ops import short_convolution

# A step size before softplus that is a step of exactly zero behind it, in every type.
NO_STEP = -1e4


def convolve(
    conv1d: nn.Conv1d,
    x: Float[Tensor, "b l d"],
    state: Float[Tensor, "b k d"] | None,
    seq_idx: Int32[Tensor, "b l"] | None,
    padding: Int[Tensor, " b"] | None,
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b k d"]]:
    """Return silu(short_convolution(x)), zero where a row is padded, and the last k - 1 inputs in the state's type.

    Only the parameters of `conv1d` are used: their names, shapes and initialisation are those of nn.Conv1d.

    Raises:
        UsageError: it was replaced by something that is not used by its parameters alone, as an adapter.
    """
    if not isinstance(conv1d, nn.Conv1d) and not hasattr(conv1d, "modules_to_save"):
        raise UsageError(
            f"conv1d is a {type(conv1d).__module__}.{type(conv1d).__name__}, expected torch.nn.Conv1d: it is not "
            "called, so an adapter on it would have no effect; train it whole (PEFT's modules_to_save) or leave it"
        )
    before = None if state is None else state.to(x.dtype)
    steps = None if padding is None else padded(padding, x.shape[1])
    if steps is not None:
        x = x.masked_fill(steps, 0)
        if before is not None and padding is not None:
            x, before = _behind_padding(x, before, padding)
    y, after = short_convolution(
        x,
        conv1d.weight.squeeze(1),
        conv1d.bias,
        activation="silu",
        state=before,
        seq_idx=seq_idx,
    )
    if steps is not None:
        y = y.masked_fill(steps, 0)  # of a bias; nothing of the padding may enter the scan
    return y, after if state is None else after.to(state.dtype)


def padded(padding: Int[Tensor, " b"], length: int) -> Tensor:
    """Return where rows are padded: (b l 1), true in their first `padding` steps."""
    return (torch.arange(length, device=padding.device) < padding[:, None])[:, :, None]


def _behind_padding(x: Tensor, before: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    """Move the inputs before x to where the padding ends, so that they meet the first step that counts."""
    kept = before.shape[1]
    whole = torch.cat([before, x], dim=1)
    at, end = torch.arange(whole.shape[1], device=x.device), padding[:, None]
    source = torch.where(at < end + kept, at - end, at).clamp(min=0)[:, :, None]
    whole = whole.gather(1, source.expand(whole.shape)).masked_fill((at < end)[:, :, None], 0)
    return whole[:, kept:], whole[:, :kept]
