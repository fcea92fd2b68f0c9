"""Ctrl-C and SIGTERM as a request: the running step ends, the run is saved, then it stops."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

INTERRUPTED = "interrupted"
TERMINATED = "terminated"
_REASONS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


class StopRequest:
    """While entered, the first signal sets `reason`; a second one acts at once, as without us."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        # Python lets only the main thread handle signals; elsewhere the owner of it decides.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _REASONS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.reason = _REASONS[signal.Signals(number)]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
