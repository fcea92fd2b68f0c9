"""What the options of a command may be: told before minutes are spent on it."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from adder.errors import UsageError


def check_new_file(option: str, path: Path, force: bool = False) -> None:
    """Refuse a file that is there already, unless `force`, and what `check_file` refuses."""
    check_file(option, path)
    if path.exists() and not force:
        raise UsageError(f"{option} {path} is there already: name another, or give --force")


def check_file(option: str, path: Path) -> None:
    """Refuse what could not be written as a file."""
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder: name a file in it")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}")
    if not os.access(path.absolute().parent, os.W_OK):
        raise UsageError(f"{option} {path}: {path.parent} cannot be written to")


def check_known(option: str, given: Iterable[str] | None, known: Sequence[str]) -> None:
    """Refuse a name that is not known."""
    for name in given or ():
        if name not in known:
            raise UsageError(f"{option} {name}: choose {', '.join(known[:-1])} or {known[-1]}")
