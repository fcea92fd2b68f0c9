"""Products with weights of 8 and 4 bits."""

from adder.ops.quantized_linear.interface import quantized_linear as quantized_linear
from adder.ops.quantized_linear.weight import QuantizedWeight as QuantizedWeight
from adder.ops.quantized_linear.weight import quantize as quantize
