"""llama.cpp, through the programs that it measures itself with."""

import json
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adder.benchmark.contestants import (
    DECODED_TOKENS,
    CannotMeasure,
    Contestant,
    Sample,
    Task,
)
from adder.benchmark.peers.serve import memory_of

LOOK_SECONDS = 0.005


@dataclass
class _Run:
    """What a program printed, and the most memory it held."""

    output: str = ""
    errors: str = ""
    code: int = 0
    peak_bytes: int | None = None


class Llama(Contestant):
    """llama.cpp's llama-bench with one GGUF file; for several streams the llama-batched-bench beside it."""

    def __init__(self, binary: Path, gguf: Path):
        super().__init__("llama.cpp", _type_in_name(gguf))
        self.binary, self.gguf = binary, gguf
        self.comparable, self.base = comparable_precision(self.precision), 0

    def launch(self) -> None:
        """Each measurement is a process of its own."""

    def start(self) -> None:
        self.base = run([str(self.binary), "--help"]).peak_bytes or 0
        row = self._bench(1, "-p", "0", "-n", "1")[0]
        self.facts = {
            "weight_bytes": int(row["model_size"]),
            "version": f"build {row.get('build_commit', 'unknown')}",
            "model": row["model_type"],
            "parameters": int(row["model_n_params"]),
        }
        kind = row["model_type"].partition(" - ")  # such as "mamba 0.1B Q4_K - Medium"
        self.precision = kind[0].split()[-1] + (f"_{kind[2][0]}" if kind[2] else "")
        self.comparable = comparable_precision(self.precision)

    def measure(self, task: Task, start: int) -> Sample:
        del start
        if task.kind == "train":
            raise CannotMeasure("llama-bench does not train")
        if task.batch > 1:
            return self._batched(task)
        prefill = task.kind == "prefill"
        tokens = task.context if prefill else DECODED_TOKENS
        asked = ["-p", str(tokens), "-n", "0"] if prefill else ["-p", "0", "-n", str(tokens)]
        depth = [] if prefill else ["-d", str(task.context)]
        row = self._bench(task.threads, *asked, *depth)[0]
        return Sample([tokens], [tokens / row["samples_ts"][0]], self._above(row["peak_bytes"]))

    def _above(self, peak: int | None) -> int | None:
        return None if peak is None else peak - self.base

    def _bench(self, threads: int, *options: str) -> list[dict[str, Any]]:
        done = run(
            [
                *[str(self.binary), "-m", str(self.gguf), "-t", str(threads), "-r", "1"],
                *[*options, "-o", "json"],
            ]
        )
        try:
            rows = json.loads(done.output)
            if not isinstance(rows, list) or not rows:
                raise ValueError("no rows")
        except ValueError:
            raise CannotMeasure(_complaint(self.binary, done)) from None
        return [{**row, "peak_bytes": done.peak_bytes} for row in rows]

    def _batched(self, task: Task) -> Sample:
        binary = self.binary.with_name("llama-batched-bench")
        if not binary.exists():
            raise CannotMeasure(f"there is no {binary.name} beside {self.binary.name}")
        n, b = task.context, task.batch
        done = run(
            [
                *[str(binary), "-m", str(self.gguf), "-t", str(task.threads)],
                *["-c", str(b * (n + DECODED_TOKENS)), "-npp", str(n)],
                *["-ntg", str(DECODED_TOKENS), "-npl", str(b), "--output-format", "jsonl"],
            ]
        )
        rows = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
        if not rows:
            raise CannotMeasure(_complaint(binary, done))
        tokens = DECODED_TOKENS * b
        return Sample([tokens], [tokens / rows[-1]["speed_tg"]], self._above(done.peak_bytes))

    def close(self) -> None:
        """Nothing stays between its runs."""


def run(command: list[str]) -> _Run:
    """Run a program to its end, in a session of its own; it is killed where this process is interrupted."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, start_new_session=True
            )
        except OSError as error:
            raise CannotMeasure(f"{command[0]} does not run: {error.strerror}") from None
        # What the system tells of an ended child counts the memory of this process before exec: it is
        # looked at while it runs, and its own highest mark misses nothing but the last moment.
        peak, code = None, None
        try:
            while code is None:
                peak = memory_of(str(process.pid)).get("VmHWM", peak)
                try:
                    code = process.wait(LOOK_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            process.kill()
            process.wait()
            raise
        texts = []
        for file in (out, errors):
            file.seek(0)
            texts.append(file.read().decode("utf-8", errors="replace"))
    return _Run(texts[0], texts[1], code, peak)


def comparable_precision(kind: str) -> str:
    """The precision of ours that reads about as many bytes as a type of llama.cpp."""
    if kind == "F32":
        return "float32"
    if found := re.search(r"Q(\d)", kind):
        return "int8" if int(found[1]) > 5 else "int4"
    return "bfloat16"


def _type_in_name(gguf: Path) -> str:
    found = re.search(r"(bf16|f16|f32|i?q\d\w*)", gguf.stem, flags=re.IGNORECASE)
    return found[1].upper() if found else gguf.stem[-8:]


def _complaint(binary: Path, done: _Run) -> str:
    said = [line for line in done.errors.splitlines() if line.strip()]
    wrong = [line for line in said if "error" in line.lower() or "failed" in line.lower()]
    words = (wrong or said or ["nothing"])[0]
    return f"{binary.name} ended with {done.code} and said: {' '.join(words.split())[:160]}"
