"""The Triton kernels of the norms: which calls they serve, and how the tensors reach them."""

import torch
import triton
from torch import Tensor

from adder.ops.gated_norm.gpu_kernels import backward_kernel, forward_kernel
from adder.ops.native import outer_strides, side_by_side

STORAGE = (torch.float32, torch.bfloat16, torch.float16)
# Channels of a group: narrow ones lie apart, wide ones do not fit the registers.
NARROWEST, WIDEST = 32, 16384
ROWS = 1 << 30  # at most: they are counted in 32 bits
TILE = 1024  # numbers of a program, about, where a group is narrower
EACH = 8  # numbers of a lane
WARPS = 4224  # of the backward pass: 32 for each multiprocessor of an H100 or H200


def serves(y: Tensor, group_size: int) -> bool:
    """The kernels serve float32, bfloat16, float16, and groups of 32 to 16384 channels or one group of fewer."""
    b, length, d = y.shape
    return (
        y.dtype in STORAGE
        and (group_size >= NARROWEST or group_size == d)
        and group_size <= WIDEST
        and b * length < ROWS
    )


def forward(
    y: Tensor,
    z: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
) -> Tensor:
    """Return the norm of (b l d), gated where z is given; weight in float32."""
    y, z = side_by_side(y), None if z is None else side_by_side(z)
    b, length, d = y.shape
    out = torch.empty((b, length, d), dtype=y.dtype, device=y.device)
    layout = _layout(group_size)
    forward_kernel[(triton.cdiv(b * length, layout["ROWS"]) * (d // group_size),)](
        y, z, weight.contiguous(), out, *outer_strides(y, z), b * length, length, d, group_size,
        d // group_size, eps, BEFORE=norm_before_gate, FLAT=_flat(y, z), **layout,
    )  # fmt: skip
    return out


def backward(
    y: Tensor,
    z: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    dout: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of y, z (empty without a gate) and weight."""
    y, z = side_by_side(y), None if z is None else side_by_side(z)
    dout = side_by_side(dout)
    (b, length, d), groups = y.shape, y.shape[2] // group_size
    dy = torch.empty((b, length, d), dtype=y.dtype, device=y.device)
    dz = torch.empty(0 if z is None else (b, length, d), dtype=y.dtype, device=y.device)
    layout = _layout(group_size)
    tiles = triton.cdiv(b * length, layout["ROWS"])
    programs = max(1, min(tiles, WARPS // layout["num_warps"] // groups))  # for each group
    parts = torch.empty((programs, d), dtype=torch.float32, device=y.device)
    backward_kernel[(programs * groups,)](
        y, z, weight.contiguous(), dout, dy, None if z is None else dz, parts, *outer_strides(y, z, dout),
        b * length, length, d, group_size, groups, programs, triton.cdiv(tiles, programs), eps,
        BEFORE=norm_before_gate, FLAT=_flat(y, z, dout), **layout,
    )  # fmt: skip
    return dy, dz, parts.sum(0)


def _layout(group_size: int) -> dict[str, int]:
    """Rows and channels of a tile, powers of two, and the warps that hold it."""
    block = triton.next_power_of_2(group_size)
    rows = max(1, TILE // block)
    warps = max(1, min(16, rows * block // (32 * EACH)))
    return {"ROWS": rows, "BLOCK": block, "num_warps": warps}


def _flat(*tensors: Tensor | None) -> bool:
    """Whether (b l d) could be one axis of rows in each tensor."""
    return all(x is None or x.stride(0) == x.shape[1] * x.stride(1) for x in tensors)
