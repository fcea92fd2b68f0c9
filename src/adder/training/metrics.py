"""metrics.jsonl: one JSON object for each step, in order, none missing and none twice."""

import json
import os
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any

from adder.training.files import replace_file

METRICS = "metrics.jsonl"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl as dicts; a line that a killed process left unfinished ends it."""
    path = run / METRICS
    if not path.exists():
        return []
    lines = []
    for line in path.read_bytes().decode("utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            break
        if not isinstance(values, dict) or not isinstance(values.get("step"), int):
            break
        lines.append(values)
    return lines


class MetricsFile:
    """Appends to metrics.jsonl; opening it removes the lines after the step a run resumes from."""

    def __init__(self, run: Path, step: int) -> None:
        path = run / METRICS
        self.lines = [line for line in read_metrics(run) if line["step"] <= step]
        replace_file(path, "".join(map(_line, self.lines)).encode("utf-8"))
        self._file: TextIOWrapper = path.open("a", encoding="utf-8")

    def append(self, values: dict[str, Any]) -> None:
        """Add a line; it survives a kill of this process from here on."""
        self._file.write(_line(values))
        self._file.flush()
        self.lines.append(values)

    def flush_to_disk(self) -> None:
        """After this the lines survive a power cut too."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"
