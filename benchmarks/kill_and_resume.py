"""Does a run survive kill -9? Kills a training at random moments and resumes it, again and again.

    python benchmarks/kill_and_resume.py [KILLS]            100 by default, about 10 minutes

After every kill the newest checkpoint must load whole and the training must go on. When all kills
are spent, the curve and the final weights must equal, bit for bit, those of a run that was left
alone. Prints the counts; exits with 1 where anything differs.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from adder.errors import AdderError
from adder.training import open_run
from adder.training.metrics import read_metrics

SIZES = "--d-model 32 --n-layer 2 --batch-size 4 --length 32 --vocabulary bytes --device cpu"
TIMES = "--save-every 5 --evaluate-every 25 --evaluation-tokens 2000 --warmup 50"
# Steps for each kill: the run must not end before the last one.
STEPS_PER_KILL = 60


def command(run: Path, steps: int) -> list[str]:
    """Start the run, or continue it where there is one."""
    adder = [sys.executable, "-m", "adder", "train"]
    if run.exists():
        return [*adder, "--resume", str(run)]
    return [*adder, "--output", str(run), "--steps", str(steps), *SIZES.split(), *TIMES.split()]


def start(run: Path, steps: int) -> "subprocess.Popen[bytes]":
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    # One thread: small products gain nothing from a second one, and the start is quicker.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command(run, steps), env=environment, **quiet)  # type: ignore[call-overload]


def kill_once(run: Path, steps: int, generator: random.Random) -> bool:
    """Train until a random moment, kill; say whether the process was still alive then.

    Three in ten moments are anywhere, start-up included; the others are in the training itself.
    """
    metrics = run / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    process = start(run, steps)
    if generator.random() < 0.7:
        while process.poll() is None:
            if metrics.exists() and metrics.stat().st_mtime_ns != before:
                break
            time.sleep(0.01)
        time.sleep(generator.uniform(0.0, 0.5))
    else:
        time.sleep(generator.uniform(0.0, 4.0))
    alive = process.poll() is None
    process.kill()
    _, errors = process.communicate()
    if not alive and process.returncode != 0:
        raise SystemExit(f"the training failed by itself: {errors.decode()}")
    return alive


def loads(run: Path) -> bool:
    """Whether the newest checkpoint reads whole; a run killed before it existed counts as good."""
    if not run.exists():
        return True
    try:
        open_run(run).model()
    except AdderError as error:
        print(f"does not load: {error}")
        return False
    return True


def curve(run: Path) -> list[dict[str, float]]:
    """What metrics.jsonl says, apart from how fast it went."""
    return [
        {name: value for name, value in line.items() if name != "tokens_per_second"}
        for line in read_metrics(run)
    ]


def finish(run: Path, steps: int) -> None:
    process = start(run, steps)
    _, errors = process.communicate()
    # A run that a kill caught after its last step has nothing left to do, and says so.
    if process.returncode not in (0, 2) or (process.returncode == 2 and b"all its" not in errors):
        raise SystemExit(f"the training failed by itself: {errors.decode()}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a training at random moments, resume it.")
    parser.add_argument("kills", nargs="?", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    steps = STEPS_PER_KILL * arguments.kills
    folder = Path(tempfile.mkdtemp(prefix="adder-kill-"))
    whole, killed = folder / "whole", folder / "killed"
    began = time.monotonic()
    kills = loaded = 0
    while kills < arguments.kills:
        if not kill_once(killed, steps, generator):
            raise SystemExit("the run ended before the kills did: raise STEPS_PER_KILL")
        kills += 1
        loaded += loads(killed)
        print(f"\r{kills} kills, {len(curve(killed))} steps done", end="", file=sys.stderr)
    print(file=sys.stderr)
    finish(killed, steps)
    finish(whole, steps)
    same_curve = curve(whole) == curve(killed)
    one, other = open_run(whole).tensors, open_run(killed).tensors
    same_weights = all(torch.equal(one[name], other[name]) for name in one)
    print(f"{kills} kills, a checkpoint loaded {loaded} times; {len(curve(killed))} steps")
    print(f"loss curve equal: {same_curve}; weights equal bit for bit: {same_weights}")
    print(f"{time.monotonic() - began:.0f} s")
    good = loaded == kills and same_curve and same_weights and len(curve(killed)) == steps
    if good:
        shutil.rmtree(folder)
    else:
        print(f"the runs are in {folder}")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
