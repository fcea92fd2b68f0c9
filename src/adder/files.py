"""Files that are whole or absent: written under another name, flushed to the disk, renamed."""

import contextlib
import hashlib
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adder.errors import DamagedFile


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and flush it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the name of a file to write, which takes the place of `path`, or of nothing, once it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Put a whole file in the place of another, or of none."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def flush_folder(folder: Path) -> None:
    """Make renames inside a folder last over a power cut."""
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shell_word(path: Path) -> str:
    """A path as one types it in a shell: quoted where it must be, and never taken for an option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def json_bytes(values: dict[str, Any]) -> bytes:
    """The one way in which adder writes a JSON file, so that any other bytes are an edit."""
    return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode("utf-8")


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """Read what `json_bytes` wrote; DamagedFile where it is anything else."""
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise DamagedFile(f"{path} is damaged: it is not JSON") from None
    if not isinstance(values, dict):
        raise DamagedFile(f"{path} is damaged: it holds no JSON object")
    return values
