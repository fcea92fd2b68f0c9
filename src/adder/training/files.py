"""Files that are whole or absent: written under another name, flushed to the disk, renamed."""

import hashlib
import json
import os
import shlex
from pathlib import Path
from typing import Any

from adder.errors import DamagedFile


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and flush it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Put a whole file in the place of another, or of none."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        write_file(temporary, data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make renames inside a folder last over a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
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
