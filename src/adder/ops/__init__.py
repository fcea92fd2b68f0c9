"""Operators: those that walk through time take a state in, give a state out, and have gradients through both."""

from adder.ops.diagonal_kernel import diagonal_kernel as diagonal_kernel
from adder.ops.dplr_kernel import dplr_kernel as dplr_kernel
from adder.ops.gated_norm import gated_norm as gated_norm
from adder.ops.gated_norm import rms_norm as rms_norm
from adder.ops.linear import linear as linear
from adder.ops.linear_scan import linear_scan as linear_scan
from adder.ops.long_convolution import long_convolution as long_convolution
from adder.ops.quantized_linear import QuantizedWeight as QuantizedWeight
from adder.ops.quantized_linear import quantize as quantize
from adder.ops.quantized_linear import quantized_linear as quantized_linear
from adder.ops.selective_scan import selective_scan as selective_scan
from adder.ops.short_convolution import short_convolution as short_convolution
from adder.ops.state_space_dual import state_space_dual as state_space_dual
