"""h[t] = a[t] h[t-1] + x[t], with a state in and a state out."""

from adder.ops.linear_scan.interface import linear_scan as linear_scan
