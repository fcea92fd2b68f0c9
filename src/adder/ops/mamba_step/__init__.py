"""One token of each stream through a whole stack of Mamba blocks and the head."""

from adder.ops.mamba_step.interface import BlockWeights, MambaStack, StackWeights

__all__ = ["BlockWeights", "MambaStack", "StackWeights"]
