"""diagonal_kernel's Triton kernels: in Triton's interpreter on the CPU, and compiled ahead of time for an H100.

Triton reads TRITON_INTERPRET when it is imported, so each of the two has a process of its own.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from triton_process import run

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")

INTERPRETED = """
import importlib, itertools, sys
import pytest, torch
sys.path.insert(0, sys.argv[1])
from implementations import poison
from test_diagonal_kernel import compare, draw
from adder.ops.diagonal_kernel import coefficients, gpu

interface = importlib.import_module("adder.ops.diagonal_kernel.interface")

@interface._diagonal_kernel.register_kernel("cpu")
def _(A, B, C, dt, length, method):
    return coefficients.kernel(gpu.forward, A, B, C, dt, length, method)

@interface._diagonal_kernel_backward.register_kernel("cpu")
def _(A, B, C, dt, length, method, dK):
    return coefficients.gradients(gpu.moments, A, B, C, dt, length, method, dK)

poison(pytest.MonkeyPatch())
# c, h, m, length: around tiles of 32 x 64 steps, groups of 16 and 32 modes
sizes = [(1, 1, 1, 2), (2, 2, 5, 63), (1, 2, 16, 64), (1, 1, 33, 65), (3, 1, 17, 1031), (1, 2, 3, 2049)]
for dtype, size in itertools.product([torch.complex64, torch.float32], sizes):
    print(dtype, size)
    compare(draw(*size, dtype=dtype))
print("float64")
compare(draw(2, 2, 3, 40, dtype=torch.complex128))
for method in ("bilinear", "dss"):
    print(method)
    compare(draw(2, 1, 3, 100, method=method))
print("several tiles a program")
gpu.PROGRAMS = 2
for length in (6143, 8193):
    inputs = draw(1, 1, 2, length)
    inputs["dt"] /= 100
    compare(inputs)
print("z = 0")
for dtype in (torch.complex64, torch.float32):
    inputs = draw(1, 2, 3, 70, dtype=dtype, method="bilinear")
    inputs["A"][0], inputs["dt"][0] = -8, 0.25
    compare(inputs, rounding=16)  # moments are added in float32, and two of them cancel in the gradient of dt
print("done")
"""

COMPILED = """
import json, subprocess, sys
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from adder.ops.diagonal_kernel import gpu

tables = {"octaves": "*fp64", "turns": "*fp64"}
kernels = {
    gpu.kernel_tile: (
        tables | {"w": "*fp32", "K": "*fp32", "h": "i32", "m": "i32", "length": "i32", "tiles": "i32"},
        {"GROUPS": 2, "MODES": gpu.KERNEL_MODES},
    ),
    gpu.moments_part: (
        tables | {"z": "*fp32", "dK": "*fp32", "sums": "*fp64", "numbers": "i32", "h": "i32", "m": "i32",
                  "length": "i32", "groups": "i32", "parts": "i32"},
        {"TILES": 4, "MODES": gpu.MOMENTS_MODES},
    ),
}
options = dict(gpu.TILE)
warps = {"num_warps": options.pop("num_warps")}
found = {}
for kernel, (arguments, constants) in kernels.items():
    # Triton compiles anew for whole numbers that are 1, and for multiples of 16.
    for pairs, ones in ((True, False), (False, True)):
        constexprs = {**constants, **options, "PAIRS": pairs}
        if ones:
            constexprs |= {name: 1 for name, kind in arguments.items() if kind == "i32"}
        signature = arguments | dict.fromkeys(constexprs, "constexpr")
        names = kernel.arg_names
        attributes = {(names.index(name),): [["tt.divisibility", 16]]
                      for name, kind in signature.items() if kind != "constexpr"}
        source = ASTSource(kernel, {name: signature[name] for name in names}, constexprs, attributes)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=warps)
        cubin = Path(sys.argv[1]) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True)
        (line,) = (each for each in usage.stdout.splitlines() if "REG:" in each)
        found[f"{kernel.__name__} pairs={pairs} ones={ones}"] = dict(
            item.split(":") for item in line.split() if item.count(":") == 1)
print(json.dumps(found))
"""


def test_in_the_interpreter() -> None:
    """Values and gradients against the reference, with the tolerances of the other implementations."""
    strict = ("-W", "error::RuntimeWarning")
    printed = run(*strict, "-c", INTERPRETED, str(Path(__file__).parent), TRITON_INTERPRET="1")
    assert printed.endswith("done\n")


def test_compiled_for_an_h100_without_spills(tmp_path: Path) -> None:
    """A register that is spilled, or an array that is indexed, would need a stack."""
    found = json.loads(run("-c", COMPILED, str(tmp_path), TRITON_CACHE_DIR=str(tmp_path / "cache")))
    assert len(found) == 4
    assert {name: use["STACK"] for name, use in found.items()} == dict.fromkeys(found, "0")
    assert all(use["LOCAL"] == "0" for use in found.values())
