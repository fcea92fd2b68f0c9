"""How fast is each operator, against its reference and against what the machine can do at most?

    python benchmarks/operators.py [--json] [--threads 1] [--batch 2] [--length 2048] [--channels 1536]

`adder bench cpu --only operators` is the same at one size; here it can be chosen. The limit is told in
`adder/benchmark/operators.py`.
"""

import argparse
import json

import torch

from adder.benchmark.machine import multiply_rate, read_bandwidth
from adder.benchmark.operators import cases, limit, measure
from adder.benchmark.timing import machine
from adder.ops.native import status


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description="Time every operator.")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--channels", type=int, default=1536)
    parser.add_argument("--dtype", choices=["float32", "float64", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--reference-steps", type=int, default=64)
    parser.add_argument("--only", default="", help="operators whose name starts with this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype, sizes = getattr(torch, options.dtype), (options.batch, options.length, options.channels)
    bandwidth, peak = read_bandwidth()["rate"], multiply_rate(dtype, 1024, 5)["rate"]
    results = [
        {**row, "of_limit": limit(row, bandwidth, peak) / row["alone_seconds"]}
        for case in cases(*sizes, dtype)
        if case.name.startswith(options.only)
        for row in measure(case, options.repeats, options.reference_steps)
    ]
    facts = {
        "machine": machine(),
        "threads": options.threads,
        "isa": status().isa,
        "sizes": sizes,
        "dtype": options.dtype,
        "read_gigabytes_per_second": bandwidth / 1e9,
        "multiply_gigaflops_per_second": peak / 1e9,
    }
    if options.json:
        print(json.dumps({"machine": facts, "results": results}))
        return
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(f"{'operator':24}{'pass':20}{'ms':>9}{'reference':>11}{'faster':>8}{'of limit':>10}")
    for row in results:
        print(
            f"{row['operator']:24}{row['pass']:20}{1e3 * row['seconds']:9.2f}"
            f"{1e3 * row['reference_seconds']:11.1f}"
            f"{row['reference_seconds'] / row['seconds']:8.1f}{row['of_limit']:10.0%}"
        )


if __name__ == "__main__":
    main()
