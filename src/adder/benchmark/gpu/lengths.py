"""The scan and attention as the sequence grows: one sequence, forward."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import torch

from adder.benchmark.contestants import CannotMeasure
from adder.benchmark.gpu import cases, operators
from adder.benchmark.gpu.clock import Call
from adder.benchmark.gpu.jobs import Bench, Job, row_of, size_words, times_and_graph
from adder.benchmark.gpu.limits import Work
from adder.benchmark.gpu.peers import attention
from adder.benchmark.gpu.plan import Plan
from adder.benchmark.gpu.results import Row

HEAD = 64
LONGEST_CALL = 0.4  # seconds; attention takes four times as long for twice the length
SHORT = 4096  # below, launching is what takes time


def jobs(plan: Plan, peers: dict[str, str]) -> Iterable[Job]:
    """Return the measurements of the section, from short to long."""
    for length in plan.lengths:
        for case in cases.scans(plan, peers, (1, length, plan.width)):
            yield Job("lengths", "length", str(length), case.subject, partial(_scan, case, length))
        yield Job("lengths", "length", str(length), "attention", partial(_attention, length))


def _scan(case: cases.Case, length: int, bench: Bench) -> Iterator[Row]:
    (row,) = operators.measure(replace(case, backward=False), bench)
    yield {**row, "length": length}


def _attention(length: int, bench: Bench) -> Iterator[Row]:
    """Heads of 64 that are as wide together as the scan; the products of a causal mask are half of all."""
    plan, clock = bench.plan, bench.clock
    for row in bench.results.of("lengths"):
        likely = row["seconds"] * (length / row["length"]) ** 2
        if row["subject"] == "attention" and row["length"] > SHORT and likely > LONGEST_CALL:
            raise CannotMeasure(f"a call would take about {likely:.1f} s")
    heads = max(1, plan.width // HEAD)
    shape = (1, heads, length, min(HEAD, plan.width))
    first = tuple(cases.normal(clock.device, *shape) for _ in range(3))
    count = operators.copies_of(clock, first)
    sets = [first] + [tuple(map(torch.randn_like, first)) for _ in range(count - 1)]
    with torch.no_grad():
        calls: list[Call] = [partial(attention, *each) for each in sets]
        found, graph, more = times_and_graph(bench, calls, graph=True)
    more |= {"made_of": "scaled_dot_product_attention of torch"}
    more |= {"sets": count, "cached": count * operators.bytes_of(first) <= clock.cache_bytes}
    work = Work(4.0 * first[0].nbytes, flops=2.0 * length**2 * heads * shape[-1])
    shape_words = size_words(*shape)
    yield row_of(bench, "forward", found, work, graph, length=length, shape=shape_words, **more)
