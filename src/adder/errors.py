"""Errors that a user can cause and mend. Each message says what was wrong, where, and what to do."""


class AdderError(Exception):
    """Something failed. The command line prints the message as one line and exits with 1."""

    exit_code = 1


class UsageError(AdderError, ValueError):
    """The request itself cannot be served as it was made. The command line exits with 2."""

    exit_code = 2


class DamagedFile(AdderError):
    """A file is not what adder wrote: cut short, edited, or of another kind."""
