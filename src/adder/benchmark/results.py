"""What was measured, as it comes: rows of plain values, and what is worked out from them."""

import statistics
from dataclasses import dataclass, field
from typing import Any

from adder.benchmark.contestants import Contestant, Sample, Task
from adder.benchmark.model import flops_per_token
from adder.models import LanguageModelConfig

Row = dict[str, Any]


@dataclass
class Results:
    """All figures of a run so far."""

    plan: Row
    machine: Row = field(default_factory=dict)
    limits: list[Row] = field(default_factory=list)
    operators: list[Row] = field(default_factory=list)
    models: list[Row] = field(default_factory=list)
    left_out: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    complete: bool = False

    def to_dict(self) -> Row:
        """Return everything, ratios included, for a JSON file."""
        return {
            "benchmark": "adder bench cpu",
            "format": 1,
            "complete": self.complete,
            "seconds": round(self.seconds, 1),
            "machine": self.machine,
            "plan": self.plan,
            "limits": self.limits,
            "operators": self.operators,
            "models": self.models,
            "ratios": ratios(self.models),
            "left_out": self.left_out,
        }

    def limit(self, kind: str, threads: int) -> float | None:
        """The best rate found for "bandwidth", "float32" or "bfloat16" with at most so many threads."""
        rows = [row for row in self.limits if row["limit"] == kind and row["threads"] <= threads]
        return max((float(row["rate"]) for row in rows), default=None)

    def add(self, task: Task, contestant: Contestant, samples: list[Sample]) -> None:
        """Add what a contestant reached in a task, one sample a round.

        A cold one counts only where there is no other: it can be the first alone.
        """
        warm = [sample for sample in samples if not sample.cold] or samples
        rates = [sample.rate for sample in warm]
        peaks = [sample.peak_bytes for sample in samples if sample.peak_bytes is not None]
        middle = statistics.median(rates)
        most = self.most(task, contestant)
        self.models.append(
            {
                **_head(task, contestant),
                "tokens_per_second": middle,
                "low": min(rates),
                "high": max(rates),
                "samples": rates,
                "cold": warm[0].cold,
                "cold_left_out": len(samples) - len(warm),
                "peak_bytes": max(peaks, default=None),
                "weight_bytes": contestant.facts.get("weight_bytes"),
                "limit_tokens_per_second": most,
                "of_limit": middle / most if most else None,
            }
        )

    def leave_out(self, task: Task | None, contestant: Contestant, why: str) -> None:
        """Say why there is no figure: in one task, or (None) in any."""
        head = _head(task, contestant) if task else {"subject": contestant.name}
        self.left_out.append({**head, "precision": contestant.precision, "why": why})

    def most(self, task: Task, contestant: Contestant) -> float | None:
        """Tokens per second that this machine allows: by the matrix products, or by the bytes of the weights."""
        config = LanguageModelConfig(**self.plan["config"])
        kind = "float32" if contestant.comparable == "float32" else "bfloat16"
        peak = self.limit(kind, task.threads)
        bandwidth = self.limit("bandwidth", task.threads)
        if peak is None or bandwidth is None or not contestant.comparable:
            return None
        if task.kind == "prefill":
            return peak / flops_per_token(config, head=False)
        if task.kind == "train":
            return peak / (3 * flops_per_token(config, head=True))
        memory: float = task.batch * bandwidth / contestant.facts["weight_bytes"]
        return min(memory, peak / flops_per_token(config, head=True))


def _head(task: Task, contestant: Contestant) -> Row:
    return {
        "task": task.kind,
        "context": task.context,
        "batch": task.batch,
        "threads": task.threads,
        "subject": contestant.name,
        "precision": contestant.precision,
        "comparable": contestant.comparable,
    }


def same_task(row: Row) -> tuple[Any, ...]:
    """What rows have in common that were measured in turn."""
    return row["task"], row["context"], row["batch"], row["threads"]


def ratios(models: list[Row]) -> list[Row]:
    """How many times faster adder is than each peer, in the precision that is like the peer's.

    Rounds are compared one by one, since all took part in each: the middle ratio, the least and the greatest.
    Where no round counts for both, the medians are compared, and "rounds" is 0.
    """
    ours = {(same_task(row), row["precision"]): row for row in models if row["subject"] == "adder"}
    found = []
    for row in models:
        mine = ours.get((same_task(row), row["comparable"]))
        if row["subject"] == "adder" or mine is None:
            continue
        mine_by, theirs_by = _by_round(mine), _by_round(row)
        each = [mine_by[number] / theirs_by[number] for number in mine_by.keys() & theirs_by]
        rounds = len(each)
        each = each or [mine["tokens_per_second"] / row["tokens_per_second"]]
        found.append(
            {
                **{name: row[name] for name in ("task", "context", "batch", "threads")},
                "peer": row["subject"],
                "peer_precision": row["precision"],
                "adder_precision": mine["precision"],
                "times_faster": statistics.median(each),
                "low": min(each),
                "high": max(each),
                "rounds": rounds,
                "memory": _quotient(mine["peak_bytes"], row["peak_bytes"]),
            }
        )
    return found


def _by_round(row: Row) -> dict[int, float]:
    """Round -> tokens per second; what was left out as cold came first."""
    return dict(enumerate(row["samples"], start=row["cold_left_out"]))


def against_length(models: list[Row]) -> list[Row]:
    """What a token of adder costs after the longest context over what it costs after the shortest."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in models:
        if row["subject"] == "adder" and row["task"] == "decode" and row["batch"] == 1:
            groups.setdefault((row["precision"], row["threads"]), []).append(row)
    return [
        {
            "precision": precision,
            "threads": threads,
            "from": rows[0]["context"],
            "to": rows[-1]["context"],
            "time": rows[0]["tokens_per_second"] / rows[-1]["tokens_per_second"],
            "memory": _quotient(rows[-1]["peak_bytes"], rows[0]["peak_bytes"]),
        }
        for (precision, threads), rows in groups.items()
        if len(rows) > 1
    ]


def _quotient(a: int | None, b: int | None) -> float | None:
    return a / b if a is not None and b else None
