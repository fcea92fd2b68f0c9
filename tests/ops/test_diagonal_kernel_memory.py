"""diagonal_kernel: what it needs beside its inputs and outputs, in processes of their own."""

import subprocess
import sys

import pytest

from adder.ops import native

H, M, LENGTH = 64, 32, 16384
NAIVE = H * M * LENGTH * 8  # bytes of the powers z^l (h m l) in complex64

PROGRAM = """
import resource, sys
import torch
from adder.ops import diagonal_kernel
from torch.library import custom_op
if sys.argv[1] == "portable":
    from torch._library.custom_ops import OPDEFS
    names = ("adder::diagonal_kernel", "adder::diagonal_kernel_backward") if {compiled} else ()
    off = [OPDEFS[name].set_kernel_enabled("cpu", enabled=False) for name in names]
    for each in off:  # held, since a manager that is dropped switches the kernel on again
        each.__enter__()
torch.set_num_threads(2)

def run(length):
    A = torch.complex(-torch.ones({h}, {m}), torch.arange({m}).float().expand({h}, -1)).requires_grad_()
    C = torch.randn(1, {h}, {m}, dtype=torch.complex64).requires_grad_()
    K = diagonal_kernel(A, torch.ones_like(A), C, torch.full(({h},), 0.01), length)
    K.backward(torch.ones_like(K))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

run(64)  # whatever is loaded and allocated once
before = peak()
run({length})
print(peak() - before)
"""


@pytest.mark.parametrize("implementation", ["portable", "as installed"])
def test_memory_is_far_below_that_of_the_powers(implementation: str) -> None:
    """K and its gradient are 8 MB; the powers of all steps would be 268 MB, and their gradient as much."""
    program = PROGRAM.format(h=H, m=M, length=LENGTH, compiled=native.module() is not None)
    command = [sys.executable, "-c", program, implementation]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    needed = int(done.stdout)
    outputs = 2 * H * LENGTH * 4
    assert needed < outputs + NAIVE / 4
    if implementation == "as installed" and native.module() is not None:
        assert needed < outputs + NAIVE / 25
