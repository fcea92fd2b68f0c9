"""A process that measures adder: one model, or the machine and the operators.

    python -m adder.benchmark.worker '{"subject": "adder", "precision": "float32", ...}'

See `peers/serve.py` for the loop and the requests.
"""

from typing import Any

from adder.benchmark.peers.serve import Measured, serve


def make(job: dict[str, Any]) -> Any:
    """Return what answers the requests of a job."""
    if job["subject"] == "machine":
        from adder.benchmark.machine import Machine

        return Machine(job["quick"])
    from adder.benchmark.model import Adder

    return Measured(Adder, job)


if __name__ == "__main__":
    serve(make)
