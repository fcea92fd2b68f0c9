"""Each operator, forward and with its backward pass, against the ceilings; and five runs of one call."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from adder.benchmark.gpu import cases
from adder.benchmark.gpu.cases import Case
from adder.benchmark.gpu.clock import Call, Clock
from adder.benchmark.gpu.jobs import Bench, Job, row_of, size_words, times_and_graph
from adder.benchmark.gpu.peers import is_there, mamba_ssm_scan
from adder.benchmark.gpu.plan import Plan
from adder.benchmark.gpu.results import Row

MOST_COPIES, LARGE_BYTES = 64, 1 << 31
RUNS = 5


def jobs(plan: Plan, peers: dict[str, str]) -> Iterable[Job]:
    """Return the measurements of the section: the scans first, which are what the library is about."""
    found: list[Case] = []
    for shape in plan.scans:
        found += cases.scans(plan, peers, shape)
    for shape in plan.heads:
        found += cases.duals(plan, peers, shape)
    for shape in plan.memories:
        found += cases.memory_bound(plan, peers, shape)
    if plan.kernels is not None:
        found += cases.kernels(plan, *plan.kernels)
    for case in found:
        yield _job(case)
    yield from _equal_runs(plan, peers)


def loop_jobs(plan: Plan) -> Iterable[Job]:
    """Return the compiled loop, which takes long to compile."""
    if plan.loop is not None:
        for case in cases.loops(plan, plan.loop):
            yield _job(case)


def _job(case: Case) -> Job:
    return Job("operators", case.name, case.size, case.subject, partial(measure, case))


def copies_of(clock: Clock, inputs: tuple[Tensor, ...]) -> int:
    """How many sets of inputs take turns: together they do not fit into the cache, but where MOST_COPIES are few."""
    size = bytes_of(inputs)
    if size > LARGE_BYTES:
        return 1
    return max(2, min(MOST_COPIES, 2 * clock.cache_bytes // size + 1))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(each.nbytes for each in tensors)


def measure(case: Case, bench: Bench) -> Iterator[Row]:
    """Times of the forward pass, then of both passes, with the memory that these take."""
    first = case.draw()
    read = bytes_of(first)
    sets = [first, *(case.draw() for _ in range(copies_of(bench.clock, first) - 1))]
    del first
    common: Row = {"sets": len(sets), "cached": len(sets) * read <= bench.clock.cache_bytes}
    with torch.no_grad():
        common |= case.differs(sets[0])
        written = case.function(*sets[0]).nbytes
        calls: list[Call] = [partial(case.function, *each) for each in sets]
        with bench.clock.peak() as peak:
            calls[0]()
        times, graph, more = times_and_graph(bench, calls, case.graph)
    more |= {"peak_bytes": peak.bytes, **common}
    yield row_of(bench, "forward", times, case.work(read, written, False), graph, **more)
    if not case.backward:
        return
    del calls
    for each in sets:
        for tensor in each:
            tensor.requires_grad_()
    both = [_both_passes(case.function, each) for each in sets]
    both[0]()  # the memory is looked at when nothing is compiled any more
    with bench.clock.peak() as peak:
        both[0]()
    kept = _kept(case.function, sets[0], bench.clock)
    times, graph, more = times_and_graph(bench, both, case.graph)
    more |= {"peak_bytes": peak.bytes, "kept_bytes": kept, **common}
    yield row_of(bench, "both", times, case.work(read, written, True), graph, **more)


def _both_passes(function: Callable[..., Tensor], leaves: tuple[Tensor, ...]) -> Call:
    with torch.no_grad():
        dy = torch.randn_like(function(*leaves))
    return lambda: torch.autograd.grad(function(*leaves), leaves, dy)


def _kept(function: Callable[..., Tensor], leaves: tuple[Tensor, ...], clock: Clock) -> int | None:
    """Bytes that the forward pass keeps for the backward pass, beside inputs and output."""
    before = clock.held()
    out = function(*leaves)
    after = clock.held()
    return None if before is None or after is None else after - before - out.nbytes


def _equal_runs(plan: Plan, peers: dict[str, str]) -> Iterator[Job]:
    """The same call several times, as bits."""
    size = size_words(*plan.equal)
    subjects = [("adder", cases.our_scan, True)]
    if is_there(peers, "mamba_ssm"):
        subjects.append(("mamba_ssm", mamba_ssm_scan, False))
    for subject, function, channels_last in subjects:
        draw = partial(
            cases.draw_scan, plan.device, plan.equal, plan.states, channels_last=channels_last
        )
        measured = partial(_differences, function, draw)
        yield Job("operators", "selective_scan", size, subject, measured)


def _differences(
    function: Callable[..., Tensor], draw: Callable[[], tuple[Tensor, ...]], bench: Bench
) -> Iterator[Row]:
    """The largest difference between results of several runs, forward and backward."""
    del bench
    leaves = [each.requires_grad_() for each in draw()]
    dy = torch.randn_like(leaves[0])

    def results() -> list[Tensor]:
        y = function(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy)]

    first, found = results(), []
    for _ in range(RUNS - 1):
        found += [difference(a, b) for a, b in zip(first, results(), strict=True)]
    yield {"pass": "five runs", "difference": float(torch.tensor(found).max())}


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference between numbers, NaN where any is NaN or infinite; infinite between different shapes."""
    return float((a.float() - b.float()).abs().max()) if a.shape == b.shape else math.inf
