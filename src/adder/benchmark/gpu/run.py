"""A run: one measurement after the other, each kept as soon as it is there."""

import platform
import time
from collections.abc import Callable, Iterable
from functools import partial

import torch

from adder.benchmark.contestants import CannotMeasure
from adder.benchmark.gpu import lengths, limits, models, operators
from adder.benchmark.gpu.clock import clock_of
from adder.benchmark.gpu.jobs import Bench, Job
from adder.benchmark.gpu.peers import find_peers
from adder.benchmark.gpu.plan import Plan
from adder.benchmark.gpu.results import Results, Row


class Run:
    """Fills `results` as it goes, so that what was measured stays when it is interrupted.

    Args:
        show: is told what is measured next, once for each of `steps()`.
        saved: is called whenever a measurement is done.
        now: a clock in seconds, for the deadline.
    """

    def __init__(
        self,
        plan: Plan,
        results: Results,
        show: Callable[[str], None],
        saved: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.monotonic,
        jobs: Iterable[Job] | None = None,
    ):
        self.plan, self.results, self.show, self.saved, self.now = plan, results, show, saved, now
        self.bench = Bench(plan, clock_of(plan.device, plan.budget), results)
        results.peers = find_peers() if plan.peers else {}
        self.jobs = list(self._jobs() if jobs is None else jobs)

    def steps(self) -> int:
        """How many times `show` will be called."""
        return len(self.jobs)

    def run(self) -> None:
        """Measure everything that the plan asks for."""
        self.results.machine = machine(self.plan.device)
        begin = self.now()
        torch.manual_seed(0)
        try:
            for job in self.jobs:
                self.show(str(job))
                if self.now() - begin > 60 * self.plan.minutes:
                    self._leave_out(job, f"the {self.plan.minutes:g} minutes were over")
                    continue
                self._attempt(job)
                self.saved()
            self.results.complete = True
        finally:
            self.results.seconds = self.now() - begin

    def _attempt(self, job: Job) -> None:
        """Do one measurement; whatever it raises is a line in the report, and no end."""
        why, begin = "", self.now()
        try:
            for row in job.measure(self.bench):
                # How long it took to have this row, compiling included: where the minutes go.
                took = {"took_seconds": round(self.now() - begin, 2)}
                self.results.add({**({} if "limit" in row else job.head), **row, **took})
        except torch.OutOfMemoryError:
            why = "out of memory"
        except CannotMeasure as error:
            why = str(error)
        except Exception as error:  # of an operator or a peer: the others go on
            why = _words(error)
        if why:  # outside of the handler, where the error no longer holds the tensors of its frames
            self._leave_out(job, why)
            self.bench.shelf.clear()
        try:
            self.bench.clock.free()
        except Exception as error:  # an error of CUDA comes up again in every call
            if not why:
                self._leave_out(job, _words(error))

    def _leave_out(self, job: Job, why: str) -> None:
        self.results.left_out.append({**job.head, "why": why})

    def _jobs(self) -> Iterable[Job]:
        plan, peers = self.plan, self.results.peers
        for name in limits.LIMITS:  # always: the others are measured against them
            yield Job("limits", name, "", "device", partial(_limit, name))
        makers = {
            "operators": operators.jobs,
            "lengths": lengths.jobs,
            "block": models.block_jobs,
            "models": models.jobs,
        }
        for section, make in makers.items():
            if section in plan.sections:
                yield from make(plan, peers)
        if "operators" in plan.sections:
            yield from operators.loop_jobs(plan)


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _limit(name: str, bench: Bench) -> Iterable[Row]:
    return limits.measure(name, bench.clock, bench.plan.small)


def machine(device: torch.device) -> Row:
    """What the figures were measured on."""
    found: Row = {"torch": torch.__version__, "python": platform.python_version()}
    found["date"] = time.strftime("%Y-%m-%d")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"device": properties.name, "memory_bytes": properties.total_memory}
        found |= {"cuda": torch.version.cuda, "multiprocessors": properties.multi_processor_count}
    else:
        found["device"] = device.type
    return found
