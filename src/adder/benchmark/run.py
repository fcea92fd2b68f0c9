"""A run: limits, operators, and the models in rounds in which all take turns."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adder.benchmark import operators
from adder.benchmark.contestants import (
    CannotMeasure,
    Contestant,
    Process,
    Sample,
    Task,
    threads_words,
)
from adder.benchmark.machine import last_level_cache
from adder.benchmark.peers.serve import PIECE
from adder.benchmark.plan import Plan
from adder.benchmark.results import Results
from adder.benchmark.timing import machine as words
from adder.models import LanguageModelConfig
from adder.training.memory import free_memory

SAME_SIZE = 0.05  # by which parameter counts may differ
AT_ONCE = 2  # processes that start at the same time
PROCESS_BYTES = 1 << 29  # Python, PyTorch and some room
LIMITS = ("bandwidth", "float32", "bfloat16")


class Run:
    """Fills `results` as it goes, so that what was measured stays when it is interrupted.

    Args:
        show: is told what is measured next, once for each of `steps()`.
        saved: is called whenever a section is done.
    """

    def __init__(
        self,
        plan: Plan,
        results: Results,
        show: Callable[[str], None],
        saved: Callable[[], None] = lambda: None,
    ):
        self.plan, self.results, self.show, self.saved = plan, results, show, saved
        self.rates: dict[
            tuple[Contestant, str], tuple[float, int]
        ] = {}  # and with how many threads
        self.peaks: dict[tuple[Contestant, str], tuple[int, int]] = {}  # and at which context
        self.position: dict[tuple[Contestant, int], int] = {}

    def steps(self) -> int:
        """How many times `show` will be called."""
        plan, count = self.plan, 0
        if "limits" in plan.sections:
            count += len(LIMITS) * len(plan.threads)
        if "operators" in plan.sections:
            count += len(operators.names())
        for training, tasks in self._groups():
            parts = plan.contestants(training)
            count += len(parts) * (len(tasks) + 1)
        return count

    def run(self) -> None:
        """Measure everything that the plan asks for."""
        self.results.machine = {"machine": words(), "last_level_cache_bytes": last_level_cache()}
        begin = time.monotonic()
        try:
            if self.plan.sections & {"limits", "operators"}:
                self._machine()
            for training, tasks in self._groups():
                self._models(self.plan.contestants(training), tasks, training)
                self.saved()
            self.results.complete = True
        finally:
            self.results.seconds = time.monotonic() - begin

    def _groups(self) -> list[tuple[bool, list[Task]]]:
        groups = [(False, self.plan.reading_tasks()), (True, self.plan.training_tasks())]
        return [(training, tasks) for training, tasks in groups if tasks]

    def _machine(self) -> None:
        plan, results = self.plan, self.results
        machine = Process("machine", "", {"quick": plan.quick})
        with _started([machine]):
            machine.launch()
            machine.start()
            if "limits" in plan.sections:
                for kind in LIMITS:
                    for threads in plan.threads:
                        self.show(f"limit: {kind}, {threads_words(threads)}")
                        found = machine.ask({"kind": kind, "threads": threads})
                        results.limits.append({"limit": kind, "threads": threads, **found})
                self.saved()
            if "operators" in plan.sections:
                threads = plan.threads[0]
                for name in operators.names():
                    self.show(f"operator {name}, {threads_words(threads)}")
                    asked = {"kind": "operator", "name": name, "threads": threads}
                    for row in machine.ask(asked)["passes"]:
                        results.operators.append({**row, "threads": threads})
                self.saved()

    def _models(self, contestants: list[Contestant], tasks: list[Task], training: bool) -> None:
        with _started(contestants):
            # Two at a time: to start is mostly to import, and more of them would fight for memory.
            alive, waiting = [], list(contestants)
            launched: list[tuple[Contestant, str]] = []
            while waiting or launched:
                while waiting and len(launched) < AT_ONCE:
                    each = waiting.pop(0)
                    launched.append((each, self._launch(each, training)))
                each, why = launched.pop(0)
                self.show(f"starting {each.name} {each.precision}")
                try:
                    if why:
                        raise CannotMeasure(why)
                    each.start()
                    alive.append(each)
                    self._check_size(each)
                except CannotMeasure as error:
                    self.results.leave_out(None, each, str(error))
                    for _ in tasks:
                        self.show(f"{each.name} {each.precision} is left out")
            for task in tasks:
                self._compete(task, alive)

    def _launch(self, each: Contestant, training: bool) -> str:
        """Begin to start one; return why it cannot be, or nothing.

        A model that surely does not fit is not made: others on this machine would suffer.
        """
        weights = 4 * LanguageModelConfig(**self.plan.config).parameter_count()
        needed, free = PROCESS_BYTES + weights * (4 if training else 2), free_memory()
        if free is not None and AT_ONCE * needed > free:
            return _too_large(AT_ONCE * needed, free)
        try:
            each.launch()
        except CannotMeasure as error:
            return str(error)
        return ""

    def _check_size(self, each: Contestant) -> None:
        """A model of another size is measured, but compared with nothing."""
        ours = LanguageModelConfig(**self.plan.config).parameter_count()
        theirs = each.facts.get("parameters", ours)
        if abs(theirs - ours) > SAME_SIZE * ours:
            each.comparable = ""
            why = (
                f"has {theirs / 1e6:.1f} M parameters and adder's {ours / 1e6:.1f} M: not compared"
            )
            self.results.leave_out(None, each, why)

    def _compete(self, task: Task, contestants: list[Contestant]) -> None:
        """Measure a task in rounds; who is out of one, by an error or its time, is out of the later ones."""
        reported = task.kind in self.plan.sections
        rounds = self.plan.rounds if reported else 1
        samples: dict[Contestant, list[Sample]] = {}
        starts = {each: self._start(task, each) for each in contestants}
        for number in range(rounds):
            for each in contestants:
                if number and not self._again(samples.get(each, []), starts[each]):
                    continue
                if not number:
                    self.show(f"{task}: {each.name} {each.precision}")
                try:
                    if not number:
                        self._foresee(task, each, starts[each])
                    sample = each.measure(task, starts[each])
                except CannotMeasure as error:
                    samples.pop(each, None)
                    if reported:
                        self.results.leave_out(task, each, str(error))
                    continue
                samples.setdefault(each, []).append(sample)
        for each, done in samples.items():
            self._remember(task, each, done[-1])
            if reported:
                self.results.add(task, each, done)

    def _again(self, done: list[Sample], start: int) -> bool:
        """Whether a further round fits into the time; a text read on is its own many samples."""
        spent = sum(each.total_seconds for each in done)
        return bool(done) and not start and spent + done[-1].total_seconds <= self.plan.limit / 2

    def _start(self, task: Task, each: Contestant) -> int:
        if task.kind != "prefill" or task.context <= PIECE or not each.continues:
            return 0
        return self.position.get((each, task.batch), 0)

    def _remember(self, task: Task, each: Contestant, sample: Sample) -> None:
        if task.batch > 1:
            return
        self.rates[each, task.kind] = (sample.rate, task.threads)
        if sample.peak_bytes is not None:
            self.peaks[each, task.kind] = (sample.peak_bytes, task.context)
        if task.kind == "prefill":
            self.position[each, task.batch] = task.context

    def _foresee(self, task: Task, each: Contestant, start: int) -> None:
        """CannotMeasure for what would take too long, or too much memory, going by what came before."""
        seconds = self._seconds(task, each, start)
        if seconds is not None and seconds > self.plan.limit:
            raise CannotMeasure(
                f"would take about {seconds:.0f} s, and --limit is {self.plan.limit:.0f}"
            )
        peak, free = self.peaks.get((each, task.kind)), free_memory()
        if peak and free is not None and not start and not each.continues:
            needed = peak[0] * max(1.0, task.context / peak[1])
            if needed - peak[0] > free:
                raise CannotMeasure(_too_large(needed, free))

    def _seconds(self, task: Task, each: Contestant, start: int) -> float | None:
        rate = self._rate(each, task.kind, task.threads)
        if task.kind != "decode":
            return rate and task.batch * (task.context - start) / rate
        if each.facts.get("decodes_by") == "steps":
            return rate and task.context / rate
        if each.facts.get("decodes_by") == "reading again":
            reading = self._rate(each, "prefill", task.threads)
            return reading and 2 * task.batch * task.context / reading
        return None

    def _rate(self, each: Contestant, kind: str, threads: int) -> float | None:
        """The last rate of a kind; with fewer threads than it was measured with, the worst is assumed."""
        known = self.rates.get((each, kind))
        return known and known[0] * min(1.0, threads / known[1])


def _too_large(needed: float, free: float) -> str:
    return f"needs about {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free"


@contextmanager
def _started(contestants: list[Contestant] | list[Process]) -> Iterator[None]:
    """Whatever happens, no process stays behind."""
    try:
        yield
    finally:
        for each in contestants:
            each.close()
