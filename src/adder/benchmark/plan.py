"""What a run of `adder bench cpu` measures, and who takes part."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adder.benchmark.contestants import Contestant, Process, Task
from adder.benchmark.llama import Llama
from adder.benchmark.peers.models import SUBJECTS

SIZES: dict[str, dict[str, Any]] = {
    "130m": {"vocab_size": 50280, "d_model": 768, "n_layer": 24},
    "mamba2-130m": {"vocab_size": 50280, "d_model": 768, "n_layer": 24, "layer": "mamba2"},
    "tiny": {"vocab_size": 2048, "d_model": 128, "n_layer": 4},
}
PRECISIONS = ("float32", "bfloat16", "int8", "int4")
SECTIONS = ("limits", "operators", "prefill", "decode", "train")
CONTEXTS, QUICK_CONTEXTS = (64, 512, 2048, 8192, 16384, 65536), (64, 1024)
TRAINED_PRECISIONS = ("float32", "bfloat16")
PEER_PRECISIONS = {"transformers": TRAINED_PRECISIONS}  # the others know float32 alone
STREAMS = 16


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes, sections and peers; `threads` from the most to the fewest, contexts from short to long."""

    size: str = "130m"
    sections: frozenset[str] = frozenset(SECTIONS)
    ours: bool = True
    peers: bool = True
    quick: bool = False
    contexts: tuple[int, ...] = CONTEXTS
    threads: tuple[int, ...] = (1,)
    precisions: tuple[str, ...] = PRECISIONS
    rounds: int = 3
    limit: float = 60.0
    peer_python: str | None = None
    llama_bench: Path | None = None
    ggufs: tuple[Path, ...] = field(default=())

    @property
    def config(self) -> dict[str, Any]:
        return SIZES[self.size]

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the figures, for beside them."""
        return {
            "model_size": self.size,
            "config": self.config,
            "sections": [name for name in SECTIONS if name in self.sections],
            "contexts": list(self.contexts),
            "threads": list(self.threads),
            "precisions": list(self.precisions),
            "rounds": self.rounds,
            "limit_seconds": self.limit,
            "quick": self.quick,
        }

    def reading_tasks(self) -> list[Task]:
        """Reading and writing: every context with the most threads, one with fewer, and many streams."""
        kinds = [kind for kind in ("prefill", "decode") if kind in self.sections]
        if not kinds:
            return []
        tasks = []
        for number, threads in enumerate(self.threads):
            few = (512,) if 512 in self.contexts else self.contexts[:1]
            for context in self.contexts if number == 0 else few:
                tasks += [Task(kind, context, threads) for kind in ("prefill", "decode")]
        tasks = [each for each in tasks if each.kind == "prefill" or "decode" in kinds]
        if "decode" in kinds:
            tasks.append(Task("decode", min(64, self.contexts[0]), self.threads[0], STREAMS))
        return tasks

    def training_tasks(self) -> list[Task]:
        """One step of batch 1, with each number of threads."""
        if "train" not in self.sections:
            return []
        return [Task("train", 128 if self.quick else 512, threads) for threads in self.threads]

    def contestants(self, training: bool) -> list[Contestant]:
        """Ours first, then every peer that could be there."""
        job = {"config": self.config, "training": training}
        job["decode_seconds"] = 0.5 if self.quick else 2.0
        known = TRAINED_PRECISIONS if training else PRECISIONS
        chosen = [name for name in self.precisions if name in known]
        parts: list[Contestant] = []
        if self.ours:
            parts += [Process("adder", precision, job) for precision in chosen]
        if self.peers:
            for name in SUBJECTS:
                python = self.peer_python or sys.executable
                kinds = [p for p in PEER_PRECISIONS.get(name, ("float32",)) if p in chosen]
                parts += [Process(name, precision, job, python) for precision in kinds]
            if self.llama_bench is not None and not training:
                parts += [Llama(self.llama_bench, gguf) for gguf in self.ggufs]
        return parts
