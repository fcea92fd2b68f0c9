"""SSD: the scan at the heart of Mamba-2, as matrix products over chunks."""

from adder.ops.state_space_dual.interface import state_space_dual as state_space_dual
