"""A measurement behind one call, and what it may use."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from adder.benchmark.gpu.clock import LONG_SECONDS, Call, Clock, Times
from adder.benchmark.gpu.limits import Work
from adder.benchmark.gpu.plan import Plan
from adder.benchmark.gpu.results import Results, Row, best


@dataclass
class Shelf:
    """Holds one thing that several measurements use, as a model; the next one takes its place."""

    key: object = None
    thing: Any = None

    def take(self, key: object, make: Callable[[], Any]) -> Any:
        """Return the thing of a key. The one before is given up first: both might not fit."""
        if key != self.key:
            self.clear()
            self.thing = make()
            self.key = key
        return self.thing

    def clear(self) -> None:
        self.key = self.thing = None


@dataclass
class Bench:
    """What a measurement may use."""

    plan: Plan
    clock: Clock
    results: Results
    shelf: Shelf = field(default_factory=Shelf)


@dataclass(frozen=True)
class Job:
    """One measurement: of whom, of what, at which size. It yields its rows as they are there."""

    section: str
    name: str
    size: str
    subject: str
    measure: Callable[[Bench], Iterable[Row]] = field(compare=False)

    @property
    def head(self) -> Row:
        """What its rows begin with."""
        return {
            "section": self.section,
            "name": self.name,
            "size": self.size,
            "subject": self.subject,
        }

    def __str__(self) -> str:
        return f"{self.subject}: {self.name} {self.size}".strip()


def row_of(
    bench: Bench,
    kind: str,
    times: Times,
    work: Work | None,
    graph: Times | None = None,
    **more: object,
) -> Row:
    """Return a row of one pass, with its floor and the share of it that was reached."""
    row: Row = {"pass": kind, **times.to_dict()}
    if graph is not None:
        row |= graph.to_dict("graph_")
    floor = None if work is None else work.floor(bench.results.rates)
    if work is not None:
        row |= {"bytes": work.bytes, "exponentials": work.exponentials, "flops": work.flops}
    if floor is not None:
        row |= {"floor_seconds": floor[0], "floor_by": floor[1], "of_floor": floor[0] / best(row)}
    return {**row, **more}


def size_words(*sizes: int) -> str:
    """As sizes are written: 8x2048x4096."""
    return "x".join(map(str, sizes))


def times_and_graph(
    bench: Bench, calls: list[Call], graph: bool
) -> tuple[Times, Times | None, dict[str, object]]:
    """Times as called, and of each in one graph of all."""
    times = bench.clock.times(calls)
    if not graph or times.median > LONG_SECONDS:
        return times, None, {}
    return times, *graph_times(bench, calls)


def graph_times(bench: Bench, calls: list[Call]) -> tuple[Times | None, dict[str, object]]:
    """Times of each call in one graph of all; a capture that is refused is no failure, and is told."""
    try:
        replay = bench.clock.graph(calls)
    except RuntimeError as error:
        bench.clock.wait()
        return None, {"no_graph": " ".join(str(error).split())[:200]}
    return None if replay is None else bench.clock.times([replay]).of_each(len(calls)), {}
