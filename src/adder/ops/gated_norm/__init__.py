"""RMSNorm, plain and with Mamba-2's gate."""

from adder.ops.gated_norm.interface import gated_norm as gated_norm
from adder.ops.gated_norm.interface import rms_norm as rms_norm
