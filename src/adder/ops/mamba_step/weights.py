"""What a stack of Mamba blocks is made of, as plain tensors."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from adder.ops.quantized_linear.weight import QuantizedWeight

Weight = Tensor | QuantizedWeight


class BlockWeights(NamedTuple):
    """One block. r is dt_rank, d the inner channels, m the width of the stack, k the taps, n the state size."""

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

    def matrices(self) -> tuple[Weight, Weight, Weight, Weight]:
        """The projections."""
        return self.in_proj, self.x_proj, self.dt_proj, self.out_proj

    def small(self) -> tuple[Tensor | None, ...]:
        """The other parameters, in the order of StepBlock in cpu.hpp."""
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


class StackWeights(NamedTuple):
    """Blocks between an embedding and a head; `vocab_size` rows of the head are asked for."""

    blocks: Sequence[BlockWeights]
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
