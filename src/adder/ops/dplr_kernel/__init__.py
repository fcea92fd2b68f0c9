"""S4's kernel: K[l] = C Abar^l Bbar for A diagonal plus low rank, by the bilinear transform."""

from adder.ops.dplr_kernel.interface import dplr_kernel as dplr_kernel
