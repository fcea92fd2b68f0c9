"""Who takes part, behind one call; here the processes that hold a model."""

import json
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from adder.errors import AdderError

# Of another interpreter: `peers` is a package of its own there, and behind all that is installed.
PEER_WORKER = f"""import sys
sys.path[:] = [*sys.path[1:], {str(Path(__file__).parent)!r}]
from peers.run import main
main()"""
DECODED_TOKENS = 32
_LEAVES_AFTER_SECONDS = 10.0


class CannotMeasure(AdderError):
    """This measurement cannot be had, for the reason that the message gives."""


@dataclass(frozen=True)
class Task:
    """What is measured: reading or writing after `context` tokens, or one step of a training on them."""

    kind: str
    context: int
    threads: int
    batch: int = 1

    def __str__(self) -> str:
        streams = f" x {self.batch}" if self.batch > 1 else ""
        return f"{self.kind} {self.context}{streams}, {threads_words(self.threads)}"


@dataclass
class Sample:
    """One measurement: tokens and seconds of each of its parts, and the most memory it held.

    `cold`: nothing like it was run before, since that would have taken too long.
    """

    tokens: list[int]
    seconds: list[float]
    peak_bytes: int | None
    cold: bool = False

    @property
    def rate(self) -> float:
        """Tokens per second of all parts together."""
        return sum(self.tokens) / self.total_seconds

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds)


class Contestant(ABC):
    """Something that can be measured. `continues`: it reads on from where it was, whatever came before."""

    continues = False

    def __init__(self, name: str, precision: str):
        self.name, self.precision = name, precision
        self.comparable = precision  # the precision of ours that it is compared with
        self.facts: dict[str, Any] = {}

    @abstractmethod
    def launch(self) -> None:
        """Begin to get ready, without waiting; CannotMeasure where that is not possible."""

    @abstractmethod
    def start(self) -> None:
        """Be ready; CannotMeasure where that is not possible."""

    @abstractmethod
    def measure(self, task: Task, start: int) -> Sample:
        """Measure once. `start`: the tokens that it has read before, where it continues."""

    @abstractmethod
    def close(self) -> None:
        """Leave nothing behind."""


class Process(Contestant):
    """A worker (see `peers/serve.py`): one JSON object a line in either direction."""

    def __init__(self, name: str, precision: str, job: dict[str, Any], python: str | None = None):
        super().__init__(name, precision)
        ours = [sys.executable, "-m", "adder.benchmark.worker"]
        self.command = [python, "-c", PEER_WORKER] if python else ours
        self.job = {"subject": name, "precision": precision, **job}
        self.process: subprocess.Popen[str] | None = None
        self.errors: IO[str] | None = None

    def launch(self) -> None:
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        try:
            self.process = subprocess.Popen(
                [*self.command, json.dumps(self.job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C reaches the parent alone, which ends its children
            )
        except OSError as error:
            raise CannotMeasure(f"{self.command[0]} does not run: {error.strerror}") from None

    def start(self) -> None:
        self.facts = self._answer()
        self.continues = bool(self.facts.get("continues"))

    def measure(self, task: Task, start: int) -> Sample:
        request = {
            **{"kind": task.kind, "context": task.context, "batch": task.batch},
            **{"threads": task.threads, "start": start},
            "tokens": DECODED_TOKENS,
        }
        answer = self.ask(request)
        return Sample(
            answer["tokens"], answer["seconds"], answer["peak_bytes"], answer.get("cold", False)
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise CannotMeasure(self._death()) from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise CannotMeasure(self._death())
        answer: dict[str, Any] = json.loads(line)
        for name in ("missing", "error"):
            if name in answer:
                raise CannotMeasure(" ".join(answer[name].split())[:200])
        return answer

    def _death(self) -> str:
        assert self.process is not None
        assert self.errors is not None
        code = self.process.wait()
        if code == -9:
            return "its process was killed: most likely memory ran out"
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines()
        return f"its process ended with {code}" + (f": {said[-1]}" if said else "")

    def close(self) -> None:
        if self.errors is not None:
            self.errors.close()
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(_LEAVES_AFTER_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with _no_broken_pipe():
                stream.close()
        self.process = None


@contextmanager
def _no_broken_pipe() -> Iterator[None]:
    """A request that was not read any more is lost, and that is right."""
    try:
        yield
    except BrokenPipeError:
        return


def threads_words(threads: int) -> str:
    """As it is said: 1 thread, 2 threads."""
    return "1 thread" if threads == 1 else f"{threads} threads"
