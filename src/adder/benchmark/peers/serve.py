"""The loop of a process that holds one model and measures it when it is asked to.

It is given a job, `{"subject": "transformers", "precision": "float32", "training": false, "config": {...},
"decode_seconds": 2.0}`, and answers with one JSON object a line: first `{"ready": true, ...}` or `{"missing":
reason}`, then one answer for each request it reads.
"""

import ctypes
import gc
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

PIECE = 2048  # tokens that are read at once where a text may be read in pieces
WARM_UP_BELOW = 2.0  # seconds: what takes longer is not run once in vain, but called cold


class Missing(Exception):
    """The library is not installed here."""


class Subject(ABC):
    """One model, made of a config {vocab_size, d_model, n_layer} and the precision of its weights.

    `ids` are (batch, length); a state is whatever the next call wants back.
    """

    continues = False  # whether `read` can go on from a state of many tokens
    decodes_by = "state"  # "steps": it gets to a state token by token; "reading again": it has none

    model: nn.Module

    @abstractmethod
    def __init__(self, config: dict[str, Any], precision: str): ...

    @staticmethod
    @abstractmethod
    def library() -> str:
        """Import what is needed and return its version; Missing where it is not installed."""

    @abstractmethod
    def read(self, ids: Tensor, state: Any) -> Any:
        """Read a text and work out the logits of its last token; return the state, or None."""

    @abstractmethod
    def write(self, last: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read one token a row (batch, 1); return the likeliest next ones (batch, 1) and the state."""

    def prepare(self, ids: Tensor) -> Any:
        """Return the state after a text, by any way that gets there."""
        state = None
        for piece in torch.split(ids, PIECE if self.continues else ids.shape[1], dim=1):
            state = self.read(piece, state)
        return state

    @abstractmethod
    def loss(self, ids: Tensor) -> Tensor:
        """Return the mean loss over a text, to be differentiated."""

    def weight_bytes(self) -> int:
        """Bytes of all parameters and buffers, a tied one counted once."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        found = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}
        return sum(storage.nbytes() for storage in found.values())


class Measured:
    """Answers requests about one subject."""

    def __init__(self, kind: type[Subject], job: dict[str, Any]):
        """Make the model with its memory counted; a training's weights are float32, whatever it computes in."""
        version, self.job = kind.library(), job
        training = job["training"]
        job = {**job, "precision": "float32"} if training else job
        self.base = warmed_base(kind, job)
        torch.manual_seed(0)
        self.subject = subject = kind(job["config"], job["precision"])
        subject.model.train(training)
        self.facts = {
            "weight_bytes": subject.weight_bytes(),
            "continues": subject.continues,
            "decodes_by": subject.decodes_by,
            "version": version,
            "torch": torch.__version__,
        }
        self.states: dict[tuple[int, int], Any] = {}
        self.warm: set[tuple[object, ...]] = set()
        self.optimizer: torch.optim.Optimizer | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Measure what a request asks for: {kind, context, batch, threads, start, tokens}."""
        torch.set_num_threads(request["threads"])
        act = {"prefill": self.prefill, "decode": self.decode, "train": self.train}[request["kind"]]
        key = tuple(request[name] for name in ("kind", "context", "batch", "threads"))
        if key not in self.warm and not request["start"]:
            self.warm.add(key)
            answer = self.measured(act, request)
            if sum(answer["seconds"]) > WARM_UP_BELOW:
                return {**answer, "cold": True}
        return self.measured(act, request)

    def measured(
        self,
        act: Callable[[dict[str, Any]], tuple[list[int], list[float]]],
        request: dict[str, Any],
    ) -> dict[str, Any]:
        """Run it once; the memory is the most that was held above what was before the model."""
        exact = reset_peak()
        tokens, seconds = act(request)
        held = memory_of()
        files = held.get("RssFile", 0) + held.get("RssShmem", 0)
        above = held["VmHWM"] - files - self.base if exact and held else None
        return {"tokens": tokens, "seconds": seconds, "peak_bytes": above}

    def ids(self, request: dict[str, Any]) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        shape = (request["batch"], request["context"])
        return torch.randint(0, self.job["config"]["vocab_size"], shape, generator=generator)

    @torch.no_grad()
    def prefill(self, request: dict[str, Any]) -> tuple[list[int], list[float]]:
        start, batch = request["start"], request["batch"]
        ids = self.ids(request)[:, start:]
        state = self.states[batch, start] if start else None
        tokens, seconds = [], []
        for piece in torch.split(ids, PIECE if self.subject.continues else ids.shape[1], dim=1):
            begin = time.perf_counter()
            state = self.subject.read(piece, state)
            seconds.append(time.perf_counter() - begin)
            tokens.append(piece.numel())
        if state is not None:
            self.states[batch, request["context"]] = state
        return tokens, seconds

    @torch.no_grad()
    def decode(self, request: dict[str, Any]) -> tuple[list[int], list[float]]:
        """Write tokens until there are enough of them, or the time is over."""
        key = (request["batch"], request["context"])
        if key not in self.states:
            self.states[key] = self.subject.prepare(self.ids(request))
        state, last = self.states[key], torch.zeros(request["batch"], 1, dtype=torch.long)
        begin, count = time.perf_counter(), 0
        while count < request["tokens"] and (
            not count or time.perf_counter() - begin < self.job["decode_seconds"]
        ):
            last, state = self.subject.write(last, state)
            count += 1
        return [count * request["batch"]], [time.perf_counter() - begin]

    def train(self, request: dict[str, Any]) -> tuple[list[int], list[float]]:
        """Forward, backward, and AdamW."""
        ids = self.ids(request)
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.subject.model.parameters(), 1e-4, fused=True)
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.job["precision"] == "bfloat16"):
            loss = self.subject.loss(ids)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return [ids.numel()], [time.perf_counter() - begin]


def reset_peak() -> bool:
    """Give free memory back, and count the peak anew; False where the system cannot."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (OSError, AttributeError):
        return False
    return True


def memory_of(process: str = "self") -> dict[str, int]:
    """Bytes that a process holds, by the names of /proc/PID/status; nothing where the system does not tell."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    lines = [line.split() for line in status.splitlines() if line.startswith(("VmHWM", "Rss"))]
    return {name.rstrip(":"): int(size) * 1024 for name, size, *_ in lines}


def warmed_base(kind: type[Subject], job: dict[str, Any]) -> int:
    """Bytes that this process holds once its libraries have done the same to a tiny model.

    Much of PyTorch is loaded when it is first used; that is not the model's memory. The code of libraries is
    not counted here nor later: some systems take it out of memory while it is idle, and read it again.
    """
    subject = kind({"vocab_size": 16, "d_model": 32, "n_layer": 1}, job["precision"])
    ids = torch.zeros(1, 8, dtype=torch.long)
    if job["training"]:
        torch.autograd.backward(subject.loss(ids))
    else:
        with torch.no_grad():
            subject.write(ids[:, :1], subject.prepare(ids))
    del subject
    reset_peak()
    return memory_of().get("RssAnon", 0)


def serve(make: Callable[[dict[str, Any]], Any]) -> None:
    """Announce the subject of this process's job, and answer requests until there are no more."""
    # Libraries print what they like: the answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        subject = make(json.loads(sys.argv[1]))
    except Missing as reason:
        say(answers, {"missing": str(reason)})
        return
    except Exception as error:  # told to the process that asked, which shows it
        say(answers, {"missing": f"{type(error).__name__}: {error}"})
        return
    say(answers, {"ready": True, **subject.facts})
    for line in sys.stdin:
        try:
            say(answers, subject.answer(json.loads(line)))
        except Exception as error:  # told to the process that asked, which shows it
            say(answers, {"error": f"{type(error).__name__}: {error}"})


def say(answers: TextIO, values: dict[str, Any]) -> None:
    print(json.dumps(values), file=answers, flush=True)
