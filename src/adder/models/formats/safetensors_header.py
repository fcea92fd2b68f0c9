"""The header of a safetensors file, read and checked before anything else of the file is.

A header is JSON between an 8-byte length and the data: name -> dtype, shape, place in the data. The library that reads
the tensors checks it too, but takes memory first: up to 100 MB of JSON.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adder.errors import DamagedFile

# Of a real model: some hundred bytes for each of some thousand tensors.
_LONGEST = 8 << 20
_METADATA = "__metadata__"
_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its type as safetensors calls it, and its shape."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The tensors of one file, and the words that its writer put beside them."""

    path: Path
    entries: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Return the header of a safetensors file.

    Raises:
        DamagedFile: it is longer than any model's, is no JSON, says a thing twice, or does not describe the data that
            follows, every byte once; the message names the tensor.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise DamagedFile(
                f"{path}: cannot be read: no safetensors file, or cut short: it has {size} bytes, and a header of "
                f"{length} was announced"
            )
        if length > _LONGEST:
            raise DamagedFile(
                f"{path}: cannot be read: its header has {length} bytes, and no model's has more than {_LONGEST}"
            )
        raw = file.read(length)
    try:
        values = json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path}: cannot be read: its header is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise DamagedFile(f"{path}: cannot be read: its header is no JSON object")
    metadata = values.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise DamagedFile(f"{path}: cannot be read: its metadata are no strings")
    entries = {name: _entry(path, name, value) for name, value in values.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            raise DamagedFile(
                f"{path}: {name} begins at byte {entry.start} of the data, expected {end}"
            )
        end = entry.end
    if end != size - 8 - length:
        raise DamagedFile(
            f"{path}: its header describes {end} bytes of data, and it has {size - 8 - length}"
        )
    return Header(path, entries, metadata)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} stands there twice")
    return values


def _entry(path: Path, name: str, value: Any) -> Entry:
    try:
        dtype, shape, (start, end) = value["dtype"], value["shape"], value["data_offsets"]
        numbers = [*shape, start, end]
    except (KeyError, TypeError, ValueError):
        raise DamagedFile(f"{path}: {name} is not described as a tensor") from None
    if len(value) != 3 or not isinstance(shape, list):
        raise DamagedFile(f"{path}: {name} is not described as a tensor")
    if not all(type(each) is int and 0 <= each < 1 << 62 for each in numbers):
        raise DamagedFile(f"{path}: {name} has sizes that are no whole numbers of at least 0")
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise DamagedFile(
            f"{path}: {name} is of type {dtype!r}, expected one of {', '.join(_BYTES)}"
        )
    if math.prod(shape) * _BYTES[dtype] != end - start:
        raise DamagedFile(
            f"{path}: {name} has shape {tuple(shape)} in {dtype}, and {end - start} bytes of data"
        )
    return Entry(dtype, tuple(shape), start, end)
