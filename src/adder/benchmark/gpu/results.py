"""What was measured on a GPU, as it comes: rows of plain values."""

from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
KEY = ("section", "name", "size", "pass")  # what rows have in common that do the same work
OTHER_WORK = (
    "attention",
    "Transformer",
)  # stand beside a scan and a Mamba, and compute something else


@dataclass
class Results:
    """All figures of a run so far. A row's seconds are medians; `graph_seconds` those of replays of a CUDA graph."""

    plan: Row
    machine: Row = field(default_factory=dict)
    peers: dict[str, str] = field(default_factory=dict)
    limits: list[Row] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    left_out: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    complete: bool = False

    @property
    def rates(self) -> dict[str, float]:
        """Limit -> how much of it there is in a second."""
        return {row["limit"]: row["rate"] for row in self.limits}

    def add(self, row: Row) -> None:
        """Keep a row; a limit has a list of its own."""
        (self.limits if "limit" in row else self.rows).append(row)

    def of(self, section: str) -> list[Row]:
        """Return the rows of a section."""
        return [row for row in self.rows if row["section"] == section]

    def to_dict(self) -> Row:
        """Return everything, ratios included, for a JSON file."""
        return {
            "benchmark": "adder bench gpu",
            "format": 1,
            "complete": self.complete,
            "seconds": round(self.seconds, 1),
            "machine": self.machine,
            "plan": self.plan,
            "peers": self.peers,
            "limits": self.limits,
            "rows": self.rows,
            "ratios": ratios(self.rows),
            "left_out": self.left_out,
        }


def ratios(rows: list[Row]) -> list[Row]:
    """How many times faster adder is than each peer at the same work: both as graphs, or else both as called.

    None of OTHER_WORK, nor of a peer whose result is not ours.
    """
    ours = {work_of(row): row for row in rows if row["subject"] == "adder" and "seconds" in row}
    found = []
    for row in rows:
        mine = ours.get(work_of(row))
        if row["subject"] in ("adder", *OTHER_WORK) or "seconds" not in row or mine is None:
            continue
        if not agrees(row):
            continue
        kind = "graph_seconds" if "graph_seconds" in row and "graph_seconds" in mine else "seconds"
        head = {name: row[name] for name in KEY}
        found.append({**head, "peer": row["subject"], "times_faster": row[kind] / mine[kind]})
    return found


def agrees(row: Row) -> bool:
    """Whether a row's result was not seen to differ from ours by more than rounding; NaN differs."""
    return "differs" not in row or row["differs"] <= row["may_differ"]


def work_of(row: Row) -> tuple[Any, ...]:
    """Return what a row did, whoever did it."""
    return tuple(row[name] for name in KEY)


def best(row: Row) -> float:
    """Seconds of a row: of a graph's replays where there are some, since launching is left out of them."""
    return float(row.get("graph_seconds") or row["seconds"])
