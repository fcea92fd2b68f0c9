"""`adder info`: what it says is what the dispatcher does, in 80 columns."""

import json

import pytest
import torch

import adder.ops
from adder.cli import info as command
from adder.cli.main import main
from adder.ops import native

OPERATORS = [
    "linear_scan",
    "selective_scan",
    "short_convolution",
    "long_convolution",
    "diagonal_kernel",
    "dplr_kernel",
    "gated_norm",
    "rms_norm",
]
