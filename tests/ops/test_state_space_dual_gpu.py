"""state_space_dual's Triton kernels: in Triton's interpreter or on a GPU, and compiled ahead of time for an H100."""

import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from triton_process import run

import adder.ops  # noqa: F401  (registers the operator)

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")

CASES = str(Path(__file__).parent / "state_space_dual_on_gpu.py")
COMPILED = """
import json, sys
sys.path.insert(0, sys.argv[1])
from triton_process import resources
from adder.ops.state_space_dual import gpu, gpu_backward, gpu_forward

SIGNALS = "x dt B C a b partner dy y out dx ddt scores pairs".split()
FLOATS = "A D bias steps sums rests slopes states initial final after dx_x dA dD dbias parts".split()
FLOATS += "spans enters whole leaves columns".split()
types = dict.fromkeys(SIGNALS, "*bf16") | dict.fromkeys(FLOATS, "*fp32") | dict.fromkeys(("dt_min", "dt_max"), "fp32")
types["marks"] = "*i32"
usual = dict.fromkeys(("seq_idx", "number", "z", "initial")) | {"PRECISION": "bf16", "T": gpu.CHUNK, "P": 64}
usual |= {"BY_CHANNEL": False, "CAREFUL": False}
# Of each call: its types, its constants, and which arguments that are usually None it has.
calls = {
    "usual": ({}, {}, ()),
    "careful": ({}, {"CAREFUL": True}, ()),
    "gated and packed": ({}, {}, ("z", "number", "seq_idx")),
    "float32": (dict.fromkeys(SIGNALS, "*fp32"), {"PRECISION": "bf16x6"}, ()),
    "float32, careful": (dict.fromkeys(SIGNALS, "*fp32"), {"PRECISION": "bf16x6", "CAREFUL": True}, ()),
}
types |= {"z": "*bf16", "number": "*i32", "seq_idx": "*i32", "initial": "*fp32"}
found = {}
for call, (other_types, constants, given) in calls.items():
    layout = {name: each["float32" in call] for name, each in gpu.LAYOUTS.items()}
    kernels = [
        (gpu_forward.steps_kernel, {"SOFTPLUS": True}),
        (gpu_forward.states_kernel, {"ADJOINT": False, **layout["states"]}),
        (gpu_forward.pass_kernel, {"REVERSE": False, "AHEAD": gpu.AHEAD, "BLOCK": gpu.BLOCK}),
        (gpu_forward.scores_kernel, {"UPPER": False, **layout["scores"]}),
        (gpu_forward.output_kernel, {"dy": None, **layout["output"]}),
        (gpu_backward.edges_kernel, layout["edges"]),
        (gpu_backward.input_kernel, layout["input"]),
        (gpu_backward.pairs_kernel, layout["pairs"]),
        (gpu_backward.projection_kernel, {"OF_C": True, **layout["projection"]}),
        (gpu_backward.finish_kernel, {"M": layout["input"]["M"]}),
        (gpu_backward.gather_kernel, {"BLOCK": gpu.BLOCK}),
    ]
    if constants.get("CAREFUL"):
        kernels = [each for each in kernels if "CAREFUL" in each[0].arg_names]
    for kernel, own in kernels:
        every = types | other_types | {name: "i32" for name in kernel.arg_names if name not in types}
        if kernel is gpu_backward.input_kernel:
            every["scores"] = "*fp32"
        every_constant = {name: value for name, value in (usual | constants | own).items() if name not in given}
        found[f"{call}: {kernel.__name__}"] = resources(kernel, every, every_constant)
print(json.dumps(found))
"""
# Bytes of the stack that a kernel may spill its registers to, where it may; what it took is a little less.
STACK = {
    "usual: input_kernel": 64,
    "usual: pairs_kernel": 32,
    "usual: projection_kernel": 32,
    "careful: output_kernel": 384,
    "careful: input_kernel": 576,
    "careful: projection_kernel": 384,
    "gated and packed: edges_kernel": 32,
    "gated and packed: input_kernel": 416,
    "gated and packed: pairs_kernel": 224,
    "gated and packed: projection_kernel": 160,
    "float32: input_kernel": 256,
    "float32, careful: input_kernel": 640,
    "float32, careful: projection_kernel": 32,
}


def test_every_call() -> None:
    """Values and gradients against the reference, with the tolerances of the other implementations."""
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    assert run(CASES, **interpreted).endswith("done\n")


@pytest.mark.parametrize(("dtype", "chunks"), [(torch.bfloat16, 1), (torch.float64, 5)])
def test_traced_shapes_are_those_of_who_serves(dtype: torch.dtype, chunks: int) -> None:
    """The Triton kernels keep the state before every 256 steps, the portable ones before every chunk_size."""
    b, l, h, p, n = 2, 130, 4, 8, 16
    real = torch.promote_types(dtype, torch.float32)
    with FakeTensorMode():
        x, dt = (
            torch.empty(shape, dtype=dtype, device="cuda") for shape in ((b, l, h, p), (b, l, h))
        )
        B = torch.empty(b, l, 1, n, dtype=dtype, device="cuda")
        A = torch.empty(h, dtype=real, device="cuda")
        inputs = (x, dt, A, B, B, None, None, None, True, 0.0, math.inf, 32, None, None)
        saved = torch.ops.adder.state_space_dual(*inputs, True)[2]
    assert saved.shape == (b, chunks, h, n, p)


def test_compiled_for_an_h100(tmp_path: Path) -> None:
    """No call indexes an array; where registers are limited, so that more programs run at once, few spill."""
    printed = run("-c", COMPILED, str(Path(__file__).parent), TRITON_CACHE_DIR=str(tmp_path))
    found = json.loads(printed)
    assert len(found) == 3 * 11 + 2 * 3
    for name, use in found.items():
        assert use["LOCAL"] == "0", name
        assert int(use["STACK"]) <= STACK.get(name, 0), (name, use)


def test_no_grid_is_larger_than_cuda_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """65,535 programs on every axis but the first, however many batch rows and groups there are."""
    from adder.ops.state_space_dual import gpu
    from adder.ops.state_space_dual.portable import Inputs

    grids = {}

    class Kernel:
        def __init__(self, name: str):
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            grids[self.name] = grid
            return lambda *_, **__: None

    for name in [each for each in vars(gpu) if each.endswith("_kernel")]:
        monkeypatch.setattr(gpu, name, Kernel(name))
    b, l, g, h, p, n = 1 << 15, 1, 2, 4, 1, 1
    with torch.device("meta"):
        x, dt, A, B = (
            torch.empty(shape) for shape in ((b, l, h, p), (b, l, h), (h,), (b, l, g, n))
        )
        inputs = Inputs(x, dt, A, B, B, None, None, None, True, 0.0, math.inf, 32, None, None)
        _, _, saved = gpu.forward(inputs, True)
        gpu.backward(inputs, saved, x, None)
    assert len(grids) == 11
    assert grids["gather_kernel"][0] == b * g
    for name, grid in grids.items():
        assert max(grid[1:], default=1) <= 65_535, (name, grid)
