"""What a reader says before it takes much memory, and the errors of files that cannot be read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adder.errors import AdderError, UsageError


def need(size: int, memory: int | None, what: str) -> None:
    """UsageError where `what` takes more bytes than the `memory` that there is; None is any."""
    if memory is not None and size > memory:
        raise UsageError(
            f"{what} takes {size / 2**30:.1f} GiB of memory, and {memory / 2**30:.1f} GiB are free"
        )


@contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turn what the system says of a file into one line that names it."""
    try:
        yield
    except FileNotFoundError:
        raise UsageError(f"there is no file or folder {path}") from None
    except OSError as error:
        where = error.filename or path
        raise AdderError(f"cannot read {where}: {error.strerror or error}") from None
