"""What a stack of Mamba or Mamba-2 blocks is made of, as plain tensors."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from adder.ops.quantized_linear.weight import QuantizedWeight

Weight = Tensor | QuantizedWeight
Shape = tuple[int, ...]
States = Sequence[tuple[Tensor, Tensor]]


class BlockWeights(NamedTuple):
    """One Mamba block. r is dt_rank, d the inner channels, m the width of the stack, k the taps, n the state size."""

    norm: Tensor  # (m)
    in_proj: Weight  # (2 d, m)
    in_bias: Tensor | None  # (2 d)
    conv_weight: Tensor  # (d, k)
    conv_bias: Tensor | None  # (d)
    x_proj: Weight  # (r + 2 n, d)
    dt_proj: Weight  # (d, r)
    dt_bias: Tensor  # (d)
    A_log: Tensor  # (d, n)
    D: Tensor  # (d)
    out_proj: Weight  # (m, d)
    out_bias: Tensor | None  # (m)

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """m, d, n, k, r"""
        (d, n), k, (_, r) = self.A_log.shape, self.conv_weight.shape[1], self.dt_proj.shape
        return self.norm.shape[0], d, n, k, r

    def shapes(self) -> dict[str, Shape]:
        """The shapes that go with `sizes`."""
        m, d, n, k, r = self.sizes
        return {
            "norm": (m,),
            "in_proj": (2 * d, m),
            "in_bias": (2 * d,),
            "conv_weight": (d, k),
            "conv_bias": (d,),
            "x_proj": (r + 2 * n, d),
            "dt_proj": (d, r),
            "dt_bias": (d,),
            "A_log": (d, n),
            "D": (d,),
            "out_proj": (m, d),
            "out_bias": (m,),
        }

    def state_shapes(self, b: int) -> tuple[Shape, Shape]:
        """The states of b streams: of the convolution, and of the scan."""
        _, d, n, k, _ = self.sizes
        return (b, k - 1, d), (b, d, n)

    def matrices(self) -> tuple[Weight, ...]:
        """The projections, in the order of bind.cpp."""
        return self.in_proj, self.x_proj, self.dt_proj, self.out_proj

    def small(self) -> tuple[Tensor | None, ...]:
        """The other parameters, in the order of bind.cpp."""
        return (
            self.norm,
            self.in_bias,
            self.out_bias,
            self.conv_weight,
            self.conv_bias,
            self.dt_bias,
            self.A_log,
            self.D,
        )

    def options(self) -> list[float]:
        """Numbers that are no tensors."""
        return []


class Mamba2BlockWeights(NamedTuple):
    """One Mamba-2 block: h heads of p = d / h channels in g groups, w = d + 2 g n channels of the convolution."""

    norm: Tensor  # (m)
    in_proj: Weight  # (d + w + h, m)
    in_bias: Tensor | None  # (d + w + h)
    conv_weight: Tensor  # (w, k)
    conv_bias: Tensor | None  # (w)
    dt_bias: Tensor  # (h)
    A_log: Tensor  # (h)
    D: Tensor  # (h), or (d)
    gate_norm: Tensor | None  # (d); without it y * silu(z) alone
    out_proj: Weight  # (m, d)
    out_bias: Tensor | None  # (m)
    groups: int = 1
    dt_limit: tuple[float, float] = (0.0, math.inf)
    gate_eps: float = 1e-5
    norm_before_gate: bool = False

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """m, d, n, k, h, g"""
        (m, d), (w, k), g = self.out_proj.shape, self.conv_weight.shape, self.groups
        return m, d, (w - d) // (2 * g), k, self.A_log.shape[0], g

    def shapes(self) -> dict[str, Shape]:
        """The shapes that go with `sizes`."""
        m, d, n, k, h, g = self.sizes
        w = d + 2 * g * n
        return {
            "norm": (m,),
            "in_proj": (d + w + h, m),
            "in_bias": (d + w + h,),
            "conv_weight": (w, k),
            "conv_bias": (w,),
            "dt_bias": (h,),
            "A_log": (h,),
            "D": (h,) if self.D.shape == (h,) else (d,),
            "gate_norm": (d,),
            "out_proj": (m, d),
            "out_bias": (m,),
        }

    def state_shapes(self, b: int) -> tuple[Shape, Shape]:
        """The states of b streams: of the convolution, and of the scan."""
        _, d, n, k, h, g = self.sizes
        return (b, k - 1, d + 2 * g * n), (b, h, d // h, n)

    def matrices(self) -> tuple[Weight, ...]:
        """The projections, in the order of bind.cpp."""
        return self.in_proj, self.out_proj

    def small(self) -> tuple[Tensor | None, ...]:
        """The other parameters, in the order of bind.cpp."""
        return (
            self.norm,
            self.in_bias,
            self.out_bias,
            self.conv_weight,
            self.conv_bias,
            self.dt_bias,
            self.A_log,
            self.D,
            self.gate_norm,
        )

    def options(self) -> list[float]:
        """Numbers that are no tensors, in the order of bind.cpp."""
        by_channel = self.D.shape != self.A_log.shape
        return [self.gate_eps, *self.dt_limit, self.norm_before_gate, by_channel]


AnyBlock = BlockWeights | Mamba2BlockWeights


class StackWeights(NamedTuple):
    """Blocks of one kind between an embedding and a head; `vocab_size` rows of the head are asked for."""

    blocks: Sequence[AnyBlock]
    embedding: Weight  # (v or more, m)
    norm: Tensor  # (m)
    head: Weight  # (v or more, m)
    vocab_size: int
    eps: float

    def matrices(self) -> Iterator[Weight]:
        """All weight matrices."""
        for block in self.blocks:
            yield from block.matrices()
        yield from (self.embedding, self.head)

    def small(self) -> Iterator[Tensor]:
        """All other parameters that are there."""
        for block in self.blocks:
            yield from (each for each in block.small() if each is not None)
        yield self.norm

    def tensors(self) -> Iterator[Tensor]:
        """Everything that a kernel reads."""
        for each in self.matrices():
            yield from (each,) if isinstance(each, Tensor) else (each.codes, each.scales)
        yield from self.small()
