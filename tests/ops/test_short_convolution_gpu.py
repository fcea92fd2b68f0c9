"""short_convolution's Triton kernels: in Triton's interpreter or on a GPU, and compiled ahead of time for an H100."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from triton_process import run, try_cases

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")

CASES = str(Path(__file__).parent / "short_convolution_on_gpu.py")
COMPILED = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from triton_process import resources
from adder.ops.short_convolution import gpu, gpu_kernels

types = dict.fromkeys("x state y last dy dlast dx dstate".split(), "*bf16")
types |= dict.fromkeys("weight bias parts".split(), "*fp32") | {"seq_idx": "*i32"}
# The usual call of Mamba: nothing packed, no state given.
usual = {"seq_idx": None, "state": None, "SILU": True, "K": 4, "weight_d": 1}
found = {}
for channels in (4096, 1536):
    x = torch.empty(1, 1, channels, dtype=torch.bfloat16)
    for kernel, layout in ((gpu_kernels.forward_kernel, gpu.FORWARD), (gpu_kernels.backward_kernel, gpu.BACKWARD)):
        every = types | {name: "i32" for name in kernel.arg_names if name not in types}
        found[f"{kernel.__name__} {channels}"] = resources(kernel, every, usual | layout.of(x))
print(json.dumps(found))
"""


def test_every_call() -> None:
    """Values and gradients against the reference, with the tolerances of the other implementations."""
    try_cases(CASES)


def test_compiled_for_an_h100(tmp_path: Path) -> None:
    """No register is spilled, and no array is indexed."""
    found = json.loads(
        run("-c", COMPILED, str(Path(__file__).parent), TRITON_CACHE_DIR=str(tmp_path))
    )
    assert len(found) == 4
    for name, use in found.items():
        assert (use["LOCAL"], use["STACK"]) == ("0", "0"), (name, use)
