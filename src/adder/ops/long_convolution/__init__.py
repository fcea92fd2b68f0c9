"""The causal convolution with a kernel as long as the signal, and the inputs it leaves over."""

from adder.ops.long_convolution.interface import long_convolution as long_convolution
