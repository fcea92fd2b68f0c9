"""How fast are S4's two kernels beside state-spaces/s4, in how much memory, and how near the machine's arithmetic?

    python benchmarks/s4_kernels.py [--s4 CHECKOUT] [--json] [--channels 256] [--state 64] [--length 16384]

Each subject runs in a process of its own, so that its peak memory is its own: the most that the process held above
what it held before the call, inputs and outputs taken off. The checkout is one of github.com/state-spaces/s4, used
as it is without its extensions (models/s4/s4.py; the one name it wants of pytorch_lightning is replaced by a
function that does nothing). It needs 86 MB a channel, so it runs on --peer-channels of them, and its time and memory
are scaled to all. "share" is of the product of tables alone, 2 n L multiply-adds a channel forward and
twice that backward, at the speed of PyTorch's matrix product in float32 on this machine.
"""

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adder import S4, S4D
from adder.benchmark.timing import machine, median_seconds

SUBJECTS = ("S4", "S4D", "peer S4", "peer S4D")


def kernel_of(
    subject: str, h: int, n: int, length: int, checkout: str | None
) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Return a function that makes the kernel, and the parameters it depends on."""
    torch.manual_seed(0)
    if subject in ("S4", "S4D"):
        layer = (S4 if subject == "S4" else S4D)(h, n)
        return lambda: layer.kernel(length), [
            each for k, each in layer.named_parameters() if k != "D"
        ]
    peer = _peer(Path(checkout or ""))
    kind = peer.SSMKernelDPLR if subject == "peer S4" else peer.SSMKernelDiag
    module = kind(d_model=h, d_state=n, l_max=length, n_ssm=h, init="legs", backend="naive")
    if subject == "peer S4":
        module(L=length)  # the first call sets it up
    return lambda: module(L=length)[0], list(module.parameters())


def _peer(checkout: Path) -> Any:
    path = checkout / "models" / "s4" / "s4.py"
    if not path.is_file():
        raise SystemExit(f"{checkout} is no checkout of state-spaces/s4: {path} is missing")
    lightning = types.ModuleType("pytorch_lightning.utilities")
    lightning.rank_zero_only = lambda function: function  # type: ignore[attr-defined]
    sys.modules["pytorch_lightning.utilities"] = lightning
    sys.modules["pytorch_lightning"] = types.ModuleType("pytorch_lightning")
    spec = importlib.util.spec_from_file_location("peer_s4", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(subject: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the forward pass and of both, and megabytes above inputs and outputs."""
    torch.set_num_threads(options.threads)
    channels = options.peer_channels if subject.startswith("peer") else options.channels
    make, parameters = kernel_of(subject, channels, options.state, options.length, options.s4)
    weights = torch.randn(1, channels, options.length)

    def both() -> None:
        K = make().reshape(weights.shape)
        wanted = [each for each in parameters if each.requires_grad]
        torch.autograd.grad(K, wanted, weights, allow_unused=True)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    both()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    own = 2 * sum(each.numel() * 4 for each in parameters) + weights.numel() * 4
    repeats = 7 if subject in ("S4", "S4D") else 2
    times = {}
    for name, call in (("forward", make), ("both", both)):
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        times[name] = statistics.median(taken)
    found = {**times, "megabytes": (peak - before) / 1024 - own / 2**20}
    return {name: each * options.channels / channels for name, each in found.items()}


def product_seconds(options: argparse.Namespace) -> float:
    """Seconds that forward and backward products of the tables alone would take at the speed of torch.mm."""
    torch.set_num_threads(options.threads)
    x = torch.randn(2048, 2048)
    seconds = median_seconds({"mm": lambda: x @ x}, repeats=5)["mm"]
    flops = 3 * 2 * options.channels * options.state * options.length
    return seconds * flops / (2 * 2048**3)


def main() -> None:
    parser = argparse.ArgumentParser(description="S4's kernels beside state-spaces/s4.")
    parser.add_argument("--s4", help="a checkout of state-spaces/s4")
    parser.add_argument("--json", action="store_true")
    sizes = {"channels": 256, "peer-channels": 32, "state": 64, "length": 16384, "threads": 2}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--subject", choices=SUBJECTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.subject:
        print(json.dumps(measure(options.subject, options)))
        return
    rows: dict[str, dict[str, float]] = {}
    for subject in SUBJECTS:
        if subject.startswith("peer") and not options.s4:
            continue
        command = [sys.executable, *sys.argv, "--subject", subject]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{subject} failed:\n{done.stderr}")
        rows[subject] = json.loads(done.stdout.splitlines()[-1])
    limit = product_seconds(options)
    if options.json:
        print(
            json.dumps(
                {"machine": machine(), "product_seconds": limit, **vars(options), "rows": rows}
            )
        )
        return
    print(
        f"{machine()}, {options.threads} threads, h = {options.channels}, n = {options.state}, L = {options.length}"
    )
    print(f"{'':10}{'forward':>12}{'+ backward':>12}{'memory':>12}{'share':>8}{'peer / ours':>14}")
    for subject, row in rows.items():
        ratio = rows[f"peer {subject}"]["both"] / row["both"] if f"peer {subject}" in rows else None
        share = f"{100 * limit / row['both']:.0f} %" if not subject.startswith("peer") else ""
        print(
            f"{subject:10}{1000 * row['forward']:9.1f} ms{1000 * row['both']:9.1f} ms"
            f"{row['megabytes']:9.0f} MB{share:>8}{'' if ratio is None else f'{ratio:13.0f}x'}"
        )


if __name__ == "__main__":
    main()
