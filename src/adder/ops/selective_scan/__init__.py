"""S6: the scan at the heart of Mamba."""

from adder.ops.selective_scan.interface import selective_scan as selective_scan
