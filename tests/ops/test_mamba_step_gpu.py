"""The Triton kernels of one token: in Triton's interpreter or on a GPU, and compiled ahead of time for an H100."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from triton_process import run, try_cases

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")

CASES = str(Path(__file__).parent / "mamba_step_on_gpu.py")
COMPILED = """
import json, sys
sys.path.insert(0, sys.argv[1])
from triton_process import resources
from adder.ops.mamba_step import gpu, gpu_kernels as kernels

STORED = "weight norm bias conv_weight conv_bias conv_old conv_new dt_weight dt_bias A_log D xz".split()
types = dict.fromkeys(STORED, "*bf16")
few = {**types, **dict.fromkeys("x z y projected residual out old new".split(), "*fp32"), "eps": "fp32"}
found = {}
for m, d, r, vocab in ((768, 1536, 48, 50280), (2560, 5120, 160, 50280)):
    def compiled(kernel, constants, **other):
        every = {**few, **other}
        every |= {name: "i32" for name in kernel.arg_names if name not in every}
        found[f"{kernel.__name__} {m} {len(found)}"] = resources(kernel, every, constants)
    compiled(
        kernels.enter_kernel,
        {"COLUMNS": m, "CHANNELS": d, "TAPS": 4, "DEPENDENT": True, "bias": None, **gpu._tile(2 * d, m)},
        old="*bf16", new="*bf16", u="*fp32",
    )
    for size, columns, norm, residual in ((r + 32, d, None, None), (m, d, None, "*fp32"), (vocab, m, "*bf16", None)):
        absent = {name: None for name, given in (("norm", norm), ("residual", residual)) if given is None}
        compiled(
            kernels.project_kernel,
            {"COLUMNS": columns, "DEPENDENT": True, "bias": None, **absent, **gpu._tile(size, columns)},
        )
    sizes = {"CHANNELS": d, "N": 16, "RANK": r, "DEPENDENT": True}
    sizes |= {"STATES": 16, "R": 1 << (r - 1).bit_length()}
    compiled(kernels.scan_kernel, {**sizes, "dt": None, **gpu.SCAN})
    compiled(
        kernels.scan_kernel, {**sizes, **gpu.SCAN_OF_MANY},
        x="*bf16", z="*bf16", y="*bf16", dt="*bf16", projected="*bf16",
    )
print(json.dumps(found))
"""


def test_every_stack() -> None:
    """Three tokens of every case against the reference."""
    try_cases(CASES)


def test_compiled_for_an_h100_without_spills(tmp_path: Path) -> None:
    """A register that is spilled, or an array that is indexed, would need a stack."""
    printed = run("-c", COMPILED, str(Path(__file__).parent), TRITON_CACHE_DIR=str(tmp_path))
    found = json.loads(printed)
    assert len(found) == 12
    assert {name: use["STACK"] for name, use in found.items()} == dict.fromkeys(found, "0"), found
