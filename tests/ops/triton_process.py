"""Triton programs in a process of their own, and kernels compiled ahead of time for an H100, with no GPU at hand."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def run(*command: str, **environment: str) -> str:
    """Run Python in a process of its own and return what it printed.

    Triton reads TRITON_INTERPRET when it is imported, so a test cannot set it for itself.
    """
    settings = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    settings |= environment
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True, text=True, env=settings, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"after {done.stdout.splitlines()[-1:]}: {done.stderr[-2000:]}"
    return done.stdout


def try_cases(script: str) -> None:
    """Run an *_on_gpu.py on the GPU, or in the interpreter where there is none."""
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    assert run(script, **interpreted).endswith("done\n")


def let_tensors_be_loop_bounds() -> None:
    """Triton 3.6's interpreter turns a bound into a number in a way that NumPy from 2.4 on refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_and_mend


def resources(
    kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any]
) -> dict[str, str]:
    """Compile a kernel for sm_90; return its registers, stack and so on, as cuobjdump names them.

    `types` are of all arguments that `constants` does not hold; each is taken to be a multiple of 16. `constants`
    may hold the options num_warps, num_stages and maxnreg too.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    options = {
        name: constants[name]
        for name in ("num_warps", "num_stages", "maxnreg")
        if name in constants
    }
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in names}
    for name in constants:
        del attributes[(names.index(name),)]
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    (line,) = (each for each in usage.stdout.splitlines() if "REG:" in each)
    return dict(item.split(":") for item in line.split() if item.count(":") == 1)
