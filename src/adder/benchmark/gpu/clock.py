"""How long calls take on a device: device events on a GPU, the clock of the host elsewhere."""

import gc
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Call = Callable[[], object]
MOST_ROUNDS, LEAST_ROUNDS = 200, 5
LONG_SECONDS = 0.3  # a call that takes longer is timed twice, and as no graph


@dataclass(frozen=True)
class Times:
    """Seconds of each round of a measurement."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def of_each(self, count: int) -> "Times":
        """Times of one of so many calls that were timed together."""
        return Times(tuple(each / count for each in self.seconds))

    def to_dict(self, prefix: str = "") -> dict[str, float | int]:
        """Return the median, the first and the ninth of ten parts, and how many rounds there were."""
        ordered = sorted(self.seconds)
        last = len(ordered) - 1
        return {
            f"{prefix}seconds": self.median,
            f"{prefix}low": ordered[round(0.1 * last)],
            f"{prefix}high": ordered[round(0.9 * last)],
            f"{prefix}rounds": len(ordered),
        }


@dataclass
class Peak:
    """The most bytes that a device held above what it held before, None where that is not known."""

    bytes: int | None = None


class Clock(ABC):
    """Measures on one device; `budget` is about how many seconds a measurement may take."""

    cache_bytes = 0  # inputs have to be larger, taken together, for memory to be read

    def __init__(self, device: torch.device, budget: float = 0.2):
        self.device, self.budget = device, budget

    def times(self, calls: Sequence[Call], budget: float | None = None) -> Times:
        """Times of the calls, taken in turn; they are run before, and that does not count."""
        calls[0]()
        once = self.events([calls[-1]])[0]
        if once > LONG_SECONDS:
            return Times((once, *self.events([calls[0]])))
        for call in calls[:2]:
            call()
        rounds = int((budget or self.budget) / max(once, 1e-9))
        count = max(LEAST_ROUNDS, min(MOST_ROUNDS, rounds))
        return Times(tuple(self.events([calls[k % len(calls)] for k in range(count)])))

    @abstractmethod
    def events(self, calls: Sequence[Call]) -> list[float]:
        """Seconds of each call, run one after the other."""

    def graph(self, calls: Sequence[Call]) -> Call | None:
        """All calls, one after the other, as a graph that is launched at once; None where the device has none."""
        del calls
        return None

    @abstractmethod
    def wait(self) -> None:
        """Return when the device has done all it was given."""

    def elapsed(self, call: Call) -> float:
        """Seconds by the host's clock until the device has done what a call asks for."""
        self.wait()
        begin = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - begin

    def held(self) -> int | None:
        """Bytes that tensors hold on the device, None where that is not known."""
        return None

    @contextmanager
    def peak(self) -> Iterator[Peak]:
        """Look at the memory while the body runs."""
        yield Peak()

    def free(self) -> None:
        """Give back memory that nobody needs any more."""
        gc.collect()


class HostClock(Clock):
    """Of a CPU, where a call returns when it is done."""

    def events(self, calls: Sequence[Call]) -> list[float]:
        return [self.elapsed(call) for call in calls]

    def wait(self) -> None:
        pass


class EventClock(Clock):
    """Of a GPU: an event before and after each call, and one wait at the end, so the device never idles for us."""

    def __init__(self, device: torch.device, budget: float = 0.2):
        super().__init__(device, budget)
        self.cache_bytes = int(torch.cuda.get_device_properties(device).L2_cache_size)

    def events(self, calls: Sequence[Call]) -> list[float]:
        pairs = []
        for call in calls:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
        self.wait()
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]

    def graph(self, calls: Sequence[Call]) -> Call:
        for call in calls:
            call()
        self.wait()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        return graph.replay

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def held(self) -> int:
        return torch.cuda.memory_allocated(self.device)

    @contextmanager
    def peak(self) -> Iterator[Peak]:
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before, found = self.held(), Peak()
        yield found
        found.bytes = torch.cuda.max_memory_allocated(self.device) - before

    def free(self) -> None:
        super().free()
        torch.cuda.empty_cache()


def clock_of(device: torch.device, budget: float = 0.2) -> Clock:
    """Return the clock of a device."""
    kind = EventClock if device.type == "cuda" else HostClock
    return kind(device, budget)
