"""What does `import adder` cost beside `import torch`?

    python benchmarks/import_time.py [--repeats 11] [--json]

Each import is a fresh process; the two take turns.
"""

import argparse
import json
import subprocess
import sys

from timing import machine, median_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    def importing(module: str) -> None:
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    seconds = median_seconds(
        {"torch": lambda: importing("torch"), "adder": lambda: importing("adder")},
        repeats=options.repeats,
    )
    figures = {
        "machine": machine(),
        "import torch s": seconds["torch"],
        "import adder s": seconds["adder"],
        "adder / torch": seconds["adder"] / seconds["torch"],
    }
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<34}{value:.4g}" if isinstance(value, float) else f"{name:<34}{value}")


if __name__ == "__main__":
    main()
