"""One token of each stream through a whole stack of Mamba or Mamba-2 blocks and the head."""

from adder.ops.mamba_step.interface import (
    BlockWeights,
    Mamba2BlockWeights,
    MambaStack,
    StackWeights,
)

__all__ = ["BlockWeights", "Mamba2BlockWeights", "MambaStack", "StackWeights"]
