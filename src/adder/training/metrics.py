"""metrics.jsonl: one JSON object for each step, in order, none missing and none twice."""

import json
import os
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any

from adder.errors import DamagedFile
from adder.files import replace_file

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
    """Appends to metrics.jsonl; opening it removes the lines after the step a run resumes from.

    Raises:
        DamagedFile: a line up to that step cannot be read. Lines are never dropped for that.
    """

    def __init__(self, run: Path, step: int) -> None:
        path = run / METRICS
        lines = read_metrics(run)
        readable = lines[-1]["step"] if lines else 0
        if path.exists() and readable < step:
            raise DamagedFile(
                f"{path} is damaged: it cannot be read beyond step {readable}, and the run is at "
                f"step {step}; move it away to continue without it"
            )
        self.lines = [line for line in lines if line["step"] <= step]
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
