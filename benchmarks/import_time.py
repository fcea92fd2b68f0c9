"""What does `import adder` cost beside `import torch`?

    python benchmarks/import_time.py [--repeats 11] [--json]

Each import is a fresh process; they take turns. adder looks its names up when they are first used, so
what counts is the import with every public name in use.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable

from adder.benchmark.timing import machine, median_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    def running(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    seconds = median_seconds(
        {
            "torch": running("import torch"),
            "adder": running("import adder"),
            "in use": running("import adder; [getattr(adder, name) for name in adder.__all__]"),
        },
        repeats=options.repeats,
    )
    figures = {
        "machine": machine(),
        "import torch s": seconds["torch"],
        "import adder s": seconds["adder"],
        "import adder, all names in use s": seconds["in use"],
        "adder in use / torch": seconds["in use"] / seconds["torch"],
    }
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<34}{value:.4g}" if isinstance(value, float) else f"{name:<34}{value}")


if __name__ == "__main__":
    main()
