"""Errors that a user can cause and mend. Each message says what was wrong, where, and what to do."""

import re

_LONGEST = 1000  # of a message: what a file holds may be quoted in it


class AdderError(Exception):
    """Something failed. The command line prints the message as one line and exits with 1."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        line = re.sub(r"\s*\n\s*", " ", message[:_LONGEST])
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
        super().__init__(line + "..." * (len(message) > _LONGEST))


class UsageError(AdderError, ValueError):
    """The request itself cannot be served as it was made. The command line exits with 2."""

    exit_code = 2


class DamagedFile(AdderError):
    """A file is not what adder wrote: cut short, edited, or of another kind."""
