"""The kernels' threads: many callers at once, a fork behind them, and a system that refuses to start more."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from inputs import normals

from adder.ops import linear_scan, native, rms_norm, selective_scan

needs_kernels = pytest.mark.skipif(native.module() is None, reason="adder was not compiled here")

CALL = """
import os, resource, signal, sys, torch
from adder.ops import rms_norm
x, weight = torch.ones(64, 512, 8), torch.ones(8)

def call(threads):
    torch.set_num_threads(threads)
    y = rms_norm(x, weight, eps=0.0)
    torch.set_num_threads(1)  # PyTorch's own threads do not survive a fork
    return bool((y == 1).all())

assert call(1)
"""


@needs_kernels
def test_callers_do_not_meet() -> None:
    """Several Python threads in the kernels at once, each with another number of helpers."""
    a, x, delta, projection, A, weight = normals(
        0, (2, 500, 96), (2, 500, 96), (2, 500, 96), (2, 500, 4), (96, 4), (96,)
    )

    def results() -> list[torch.Tensor]:
        y, state = selective_scan(x, delta.abs(), -A.exp(), projection, projection)
        return [y, state, *linear_scan(a.tanh(), x), rms_norm(x, weight, eps=1e-5)]

    expected = results()

    def work(threads: int) -> bool:
        torch.set_num_threads(threads)
        return all(
            torch.equal(got, right)
            for _ in range(15)
            for got, right in zip(results(), expected, strict=True)
        )

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(5) as callers:
            assert all(callers.map(work, (1, 2, 3, 4, 7)))
    finally:
        torch.set_num_threads(before)


@needs_kernels
@pytest.mark.parametrize(
    "then",
    [
        # a child has none of its parent's threads, and must not wait for them
        "assert call(3); child = os.fork(); signal.alarm(60); ok = call(3)\n"
        "if child == 0: os._exit(0 if ok else 1)\n"
        "assert ok and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0",
        # no process of this user may start another thread
        "os.getuid() or os.setuid(65534)\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (1, 1)); assert call(4)",
    ],
    ids=["fork", "no more threads"],
)
def test_in_a_process_of_its_own(then: str) -> None:
    subprocess.run([sys.executable, "-c", CALL + then], check=True, timeout=120)
