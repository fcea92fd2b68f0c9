"""selective_scan's Triton kernels: in Triton's interpreter or on a GPU, and compiled ahead of time for an H100."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from triton_process import run, try_cases

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")

CASES = str(Path(__file__).parent / "selective_scan_on_gpu.py")
COMPILED = """
import json, sys
sys.path.insert(0, sys.argv[1])
from triton_process import resources
from adder.ops.selective_scan import gpu, gpu_backward, gpu_forward
from adder.ops.selective_scan.portable import CHUNK

SIGNALS = "u delta z dy y du ddelta dz B C dB dC".split()
FLOATS = "A A2 BC D bias state ends totals carry last saved dlast middle dstate dA partial dD dbias".split()
types = dict.fromkeys(SIGNALS, "*bf16") | dict.fromkeys(FLOATS, "*fp32") | {"seq_idx": "*i32"}
forward = [{**layout.constants(), "BLOCK": block} for layout, block in gpu.forward_layouts(16)]
backward = [layout.constants() for layout in gpu.BACKWARD]
kernels = [
    (gpu_forward.ends_kernel, forward[0]),
    (gpu_forward.forward_kernel, forward[0]),
    (gpu_forward.forward_kernel, forward[1]),
    (gpu_backward.adjoint_ends_kernel, backward[0]),
    (gpu_backward.adjoint_kernel, backward[0]),
    (gpu_backward.adjoint_kernel, backward[1]),
]
# The usual call: nothing packed, no state given.
usual = dict.fromkeys(("seq_idx", "state", "dlast", "dstate")) | {"SOFTPLUS": True, "EXACT": True, "CHUNK": CHUNK}
found = {}
for kernel, layout in kernels:
    every = types | {name: "i32" for name in kernel.arg_names if name not in types}
    found[f"{kernel.__name__} {layout['maxnreg']}"] = resources(kernel, every, usual | layout)
print(json.dumps(found))
"""


def test_every_call() -> None:
    """Values and gradients against the reference, with the tolerances of the other implementations."""
    try_cases(CASES)


def test_compiled_for_an_h100(tmp_path: Path) -> None:
    """The usual call needs no stack but for an address or two, outside the loops over states; no array is indexed."""
    printed = run("-c", COMPILED, str(Path(__file__).parent), TRITON_CACHE_DIR=str(tmp_path))
    found = json.loads(printed)
    assert len(found) == 6
    for name, use in found.items():
        assert use["LOCAL"] == "0", name
        assert int(use["STACK"]) <= 16, (name, use)
