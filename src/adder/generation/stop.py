"""Where a text that comes in pieces must stop."""

from collections.abc import Sequence

from adder.errors import UsageError


class StopText:
    """Lets text through up to the first stop string, wherever the pieces happen to be cut.

    Text that may turn out to be the beginning of a stop string is held back until that is known.
    The stop string that is complete first ends the text; of two that end together, the longer.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise UsageError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def feed(self, piece: str) -> str:
        """Take the next piece; return the text that is certain by now.

        Once a stop string is complete, `found` is that string and nothing more comes out.
        """
        if self.found is not None:
            return ""
        text = self._held + piece
        ends = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if (start := text.find(stop)) >= 0
        ]
        if ends:
            _, start, self.found = min(ends)
            self._held = ""
            return text[:start]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """Return what was held back: no stop string will complete it now."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
