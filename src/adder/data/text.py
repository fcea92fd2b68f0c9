"""Where text comes from: a file, a folder, standard input, or what Python itself ships with."""

import hashlib
import os
import stat
import sys
import sysconfig
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from adder.errors import UsageError

STANDARD_INPUT = "-"
PYTHON_DOCS = "python-docs"
PYTHON_SOURCES = "python-sources"
PYTHON_SOURCES_LIMIT = 16 * 2**20
_LOOK = 2**16  # a binary file shows itself by then, and need not be read whole
_SKIPPED_LIBRARY_FOLDERS = {"test", "tests", "lib2to3", "idlelib", "site-packages", "__pycache__"}


@dataclass(frozen=True)
class Text:
    """A text and where it came from. `name` gives the same text again to `read_source`."""

    name: str
    text: str
    size_in_bytes: int

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the UTF-8 bytes: a resumed run checks that its source is unchanged."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()


def read_source(source: str | None = None) -> Text:
    """Read a text source whole.

    Args:
        source: a UTF-8 file; a folder, read as its text files in sorted order with a line break
            between them (hidden and binary files are left out); "-" for standard input;
            "python-docs" or `None` for the prose of Python's own manual (`pydoc_data.topics`,
            465 KB in Python 3.11); "python-sources" for the standard library's .py files in
            sorted order, tests left out, up to 16 MiB. A file or folder of one of these names is
            written ./python-docs.

    Raises:
        UsageError: the source is missing, unreadable, empty, or no UTF-8 text.
    """
    if source is None or source == PYTHON_DOCS:
        return _python_docs()
    if source == PYTHON_SOURCES:
        return _python_sources()
    if source == STANDARD_INPUT:
        if sys.stdin is None:
            raise UsageError("standard input is closed: there is no text to read")
        return _text(STANDARD_INPUT, sys.stdin.buffer.read(), "standard input")
    if not source:
        raise UsageError(f'the source has no name: give a file, a folder, or "{STANDARD_INPUT}"')
    path = Path(source)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _read_folder(path)
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise UsageError(f"{source} is neither a file nor a folder: give a text file")
        data = path.read_bytes()
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{source!r} is no path: {error}") from None
    except FileNotFoundError:
        raise UsageError(
            f"there is no file or folder {source}: give a text file, a folder of them, "
            f'"-" for standard input, or "{PYTHON_SOURCES}"'
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror or error}") from None
    name = STANDARD_INPUT if stat.S_ISFIFO(mode) else str(path.resolve())
    return _text(name, data, source)


def split_by_position(text: str, validation: float) -> tuple[str, str]:
    """Split a text into its beginning, for training, and its last part, for validation.

    Args:
        validation: the fraction of characters in the second part, in [0, 1).
    """
    if not 0.0 <= validation < 1.0:
        raise UsageError(f"the validation part must be at least 0 and below 1, got {validation:g}")
    position = int(len(text) * (1.0 - validation))
    return text[:position], text[position:]


def _text(name: str, data: bytes, shown: str) -> Text:
    if not data:
        raise UsageError(f"{shown} is empty: there is no text to read")
    if b"\0" in data:
        position = data.index(b"\0")
        raise UsageError(f"{shown} is binary (a zero byte at position {position}), not text")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{shown} is not UTF-8 text: byte 0x{data[error.start]:02x} at position {error.start}; "
            "convert it to UTF-8 first"
        ) from None
    if not text.strip():
        raise UsageError(f"{shown} holds nothing but blanks: there is no text to read")
    return Text(name, text, len(data))


def _text_of_file(path: Path) -> str | None:
    """The text of a regular file, or None where it is binary or blank."""
    with path.open("rb") as file:
        data = file.read(_LOOK)
        if b"\0" in data:
            return None
        data += file.read()
    if b"\0" in data:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.strip() else None


def _files_below(folder: Path, skipped: set[str]) -> list[Path]:
    """Every visible regular file below a folder, sorted by its path relative to the folder."""

    def refuse(error: OSError) -> None:
        raise error

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(f for f in folders if f not in skipped and not f.startswith("."))
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted((f for f in files if f.is_file()), key=lambda f: f.relative_to(folder).parts)


def _read_folder(folder: Path) -> Text:
    texts = [text for file in _files_below(folder, set()) if (text := _text_of_file(file))]
    if not texts:
        raise UsageError(f"the folder {folder} holds no UTF-8 text file")
    joined = "\n".join(texts)
    return Text(str(folder.resolve()), joined, len(joined.encode("utf-8")))


def _python_docs() -> Text:
    try:
        from pydoc_data import topics
    except ImportError:
        raise UsageError(
            "this Python comes without pydoc_data, the default text: give a text file instead"
        ) from None
    text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
    return Text(PYTHON_DOCS, text, len(text.encode("utf-8")))


def _python_sources() -> Text:
    library = Path(sysconfig.get_paths()["stdlib"])
    texts: list[str] = []
    size = 0
    for file in _files_below(library, _SKIPPED_LIBRARY_FOLDERS):
        text = _text_of_file(file) if file.suffix == ".py" else None
        if text is None:
            continue
        size += len(text.encode("utf-8")) + 1
        if size > PYTHON_SOURCES_LIMIT:
            break
        texts.append(text)
    if not texts:
        raise UsageError(f"no Python sources below {library}: give a text file or a folder instead")
    joined = "\n".join(texts)
    return Text(PYTHON_SOURCES, joined, len(joined.encode("utf-8")))
