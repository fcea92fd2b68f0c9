"""The norms' Triton kernels: in Triton's interpreter or on a GPU, and compiled ahead of time for an H100."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from triton_process import run, try_cases

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")

CASES = str(Path(__file__).parent / "gated_norm_on_gpu.py")
COMPILED = """
import json, sys
sys.path.insert(0, sys.argv[1])
from triton_process import resources
from adder.ops.gated_norm import gpu, gpu_kernels

types = dict.fromkeys("y z out dout dy dz".split(), "*bf16") | dict.fromkeys(("weight", "parts"), "*fp32")
types["eps"] = "fp32"
found = {}
for channels in (4096, 1536):
    for gate in ({}, {"z": None, "dz": None}):
        for kernel in (gpu_kernels.forward_kernel, gpu_kernels.backward_kernel):
            every = types | {name: "i32" for name in kernel.arg_names if name not in types}
            constants = {"BEFORE": False, "FLAT": True, **gate, **gpu._layout(channels)}
            found[f"{kernel.__name__} {channels} {gate}"] = resources(kernel, every, constants)
print(json.dumps(found))
"""


def test_every_call() -> None:
    """Values and gradients against the reference, with the tolerances of the other implementations."""
    try_cases(CASES)


def test_compiled_for_an_h100(tmp_path: Path) -> None:
    """No register is spilled, and no array is indexed."""
    printed = run("-c", COMPILED, str(Path(__file__).parent), TRITON_CACHE_DIR=str(tmp_path))
    found = json.loads(printed)
    assert len(found) == 8
    for name, use in found.items():
        assert (use["LOCAL"], use["STACK"]) == ("0", "0"), (name, use)
