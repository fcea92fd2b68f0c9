"""K[l] = 2 Re sum_j C_j Bbar_j z_j^l: the convolution kernel of a diagonal state space model (S4D, DSS, EMA)."""

from adder.ops.diagonal_kernel.interface import diagonal_kernel as diagonal_kernel
