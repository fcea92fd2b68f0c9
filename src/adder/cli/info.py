"""`adder info`: versions, devices, and which implementation serves each operator here, and why."""

import importlib.metadata
import json
import os
import platform
import shutil
import textwrap
from typing import Annotated, Any

import typer

# Public function -> the operator under it that PyTorch dispatches.
OPERATORS = {
    "linear": "linear",
    "linear_scan": "linear_scan",
    "selective_scan": "selective_scan",
    "state_space_dual": "state_space_dual",
    "short_convolution": "short_convolution",
    "long_convolution": "long_convolution",
    "diagonal_kernel": "diagonal_kernel",
    "dplr_kernel": "dplr_kernel",
    "gated_norm": "gated_norm",
    "rms_norm": "gated_norm",
    "quantized_linear": "quantized_linear",
}
FEATURES = (
    "avx2",
    "fma3",
    "avx512_f",
    "avx512_bw",
    "avx512_bf16",
    "amx_bf16",
    "asimd",
    "sve",
    "bf16",
)
# What the C++ kernels leave to portable PyTorch: what STORAGE and each operator's cpu.serves turn away.
LEFT_OUT = {
    "linear": "small products, other types than float32, autocast",
    "linear_scan": "float16, complex numbers",
    "selective_scan": "float16, complex A, constant B or C, B and C by different groups",
    "state_space_dual": "float16",
    "short_convolution": "float16",
    "long_convolution": "float16, more than 262144 taps",
    "diagonal_kernel": "",
    "dplr_kernel": "",
    "gated_norm": "float16",
    "quantized_linear": "",
}
# What the Triton kernels leave to it.
LEFT_OUT_CUDA = {
    "selective_scan": "float64, complex A, constant B or C, B and C by different groups",
    "short_convolution": "float64, more than 8 taps",
    "state_space_dual": "float64, more than 128 channels of a head, more than 256 states",
    "diagonal_kernel": "float64",
    "gated_norm": "float64, groups of under 32 or over 16384 channels",
}
WIDTH = 80


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show versions, devices, and which implementation serves each operator, and why."""
    facts = _facts()
    print(json.dumps(facts, ensure_ascii=False) if as_json else _page(facts))


def _facts() -> dict[str, Any]:
    import torch

    from adder.ops import native

    status = native.status()
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "adder": importlib.metadata.version("adder-ssm"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "kernels": {
            "available": status.available,
            "isa": status.isa,
            "reason": status.reason,
            "compiler": shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"),
        },
        "cpu": {
            "name": capabilities.get("cpu_name") or platform.processor() or platform.machine(),
            "features": [name for name in FEATURES if capabilities.get(name)],
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "devices": _devices(),
        "operators": [
            {"operator": operator, "device": device, "implementation": served, "reason": reason}
            for operator, dispatched in OPERATORS.items()
            for device, served, reason in _implementations(dispatched, status)
        ],
    }


def _devices() -> dict[str, str]:
    """Device type -> its name, for every kind of device that PyTorch can use here."""
    import torch

    devices = {"cpu": "always"}
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        devices["cuda"] = ", ".join(names)
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return devices


def _implementations(operator: str, status: Any) -> list[tuple[str, str, str]]:
    """(device, implementation, reason) for each device here, as PyTorch's dispatcher has it."""
    import torch

    import adder.ops  # noqa: F401  (registers the operators)

    rows = []
    for device in _devices():
        if operator == "linear":
            rows.append((device, *_dense(device)))
            continue
        own = torch._C._dispatch_has_kernel_for_dispatch_key(f"adder::{operator}", device.upper())
        if own and device == "cpu":
            reason = _left_to_portable(LEFT_OUT[operator])
            rows.append((device, f"C++ {status.isa}", reason))
        elif own:
            reason = (
                f"compiled at its first call; portable PyTorch serves {LEFT_OUT_CUDA[operator]}"
            )
            rows.append((device, "Triton", reason))
        elif device == "cpu":
            reason = "it has no C++ kernel yet" if status.available else status.reason
            rows.append((device, "portable PyTorch", reason))
        else:
            rows.append((device, "portable PyTorch", f"there is no kernel for {device} yet"))
    return rows


def _dense(device: str) -> tuple[str, str]:
    """Who multiplies matrices on a device, and why: no code of ours, and so none of its kind."""
    from adder.ops.linear.cpu import REFUSAL

    if device != "cpu":
        return "PyTorch", "it is what PyTorch is made for"
    if REFUSAL is not None:
        return "PyTorch", REFUSAL
    return "oneDNN", f"faster than MKL on this CPU; PyTorch serves {LEFT_OUT['linear']}"


def _left_to_portable(what: str) -> str:
    return f"compiled; portable PyTorch serves {what}" if what else "compiled; it serves every call"


def _page(facts: dict[str, Any]) -> str:
    kernels, cpu = facts["kernels"], facts["cpu"]
    compiler = kernels["compiler"] or "none found on this machine now"
    lines = [
        *_entry("adder", facts["adder"]),
        *_entry("python", facts["python"]),
        *_entry("torch", facts["torch"]),
        *_entry("system", facts["system"]),
        *_entry("cpu", f"{cpu['name']} ({', '.join(cpu['features']) or 'features unknown'})"),
        *_entry("threads", f"{cpu['threads']} of {cpu['cores']} cores"),
        *_entry("C++ kernels", kernels["reason"]),
        *_entry("compiler", compiler),
    ]
    for device, name in facts["devices"].items():
        lines += _entry("device", f"{device} ({name})" if device != "cpu" else device)
    lines += ["", _row("operator", "device", "served by", "why")[0]]
    for row in facts["operators"]:
        lines += _row(row["operator"], row["device"], row["implementation"], row["reason"])
    return "\n".join(lines)


def _entry(name: str, value: str) -> list[str]:
    return textwrap.wrap(
        value, WIDTH, initial_indent=f"{name:<13}", subsequent_indent=" " * 13
    ) or [name]


def _row(operator: str, device: str, implementation: str, reason: str) -> list[str]:
    start = f"{operator:<19}{device:<8}{implementation:<18}"
    return textwrap.wrap(reason, WIDTH, initial_indent=start, subsequent_indent=" " * len(start))
