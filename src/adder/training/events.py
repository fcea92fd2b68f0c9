"""TensorBoard events of a run, written in the calling thread so that a full disk is noticed."""

import os
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter


class EventsFile:
    """One events file; TensorBoard drops the steps of older files after the one this starts at."""

    def __init__(self, run: Path, step: int) -> None:
        name = f"events.out.tfevents.{time.time_ns()}.{os.uname().nodename}.{os.getpid()}"
        self._writer = RecordWriter(str(run / name))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if step:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def append(self, step: int, values: dict[str, float]) -> None:
        """Add scalars of a step."""
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
