"""The depthwise causal convolution in front of a scan, with its rolling state."""

from adder.ops.short_convolution.interface import short_convolution as short_convolution
