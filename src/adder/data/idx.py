"""idx files, as MNIST comes in: arrays of one type with their sizes in front, plain or in gzip."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from adder.data.budget import need, readable
from adder.errors import DamagedFile, UsageError

# The third byte of a file: http://yann.lecun.com/exdb/mnist, all big-endian.
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PARTS = {"train": ("train",), "test": ("t10k", "test")}


def idx_files(folder: Path) -> dict[str, Path] | None:
    """The idx files of a folder: train-images, train-labels, test-images, test-labels.

    None where it has no training images. t10k is a word for test, as in MNIST.

    Raises:
        UsageError: there are two files for one of them, or images without labels.
    """
    names = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    found: dict[str, Path] = {}
    for part, words in _PARTS.items():
        for kind in ("images", "labels"):
            fitting = [path for path in names if any(_is(path.name, w, kind) for w in words)]
            if len(fitting) > 1:
                raise UsageError(
                    f"{folder} has two files of {part} {kind}: {fitting[0].name} and {fitting[1].name}"
                )
            if fitting:
                found[f"{part}-{kind}"] = fitting[0]
    if "train-images" not in found:
        return None
    for part in _PARTS:
        if (f"{part}-images" in found) != (f"{part}-labels" in found):
            lacking = "labels" if f"{part}-images" in found else "images"
            raise UsageError(f"{folder} lacks the {part} {lacking}, an idx file")
    return found


def _is(name: str, part: str, kind: str) -> bool:
    return f"{part}-{kind}" in name and "idx" in name and "ubyte" in name


def read_idx(path: Path, memory: int | None = None) -> npt.NDArray[Any]:
    """Read an idx file, through gzip where its name ends in .gz.

    Args:
        memory: bytes that it may take; None for any.

    Raises:
        DamagedFile: it is no idx file, cut short, longer than it says, or damaged gzip.
        UsageError: it takes more memory than there is.
    """
    with readable(path):
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                return _read(cast(BinaryIO, file), path, memory)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DamagedFile(f"{path} is damaged: {error}") from None


def _read(file: BinaryIO, path: Path, memory: int | None) -> npt.NDArray[Any]:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _TYPES or start[3] < 1:
        raise DamagedFile(f"{path} is no idx file: it begins with {start.hex(' ') or 'nothing'}")
    dtype, axes = np.dtype(_TYPES[start[2]]), start[3]
    sizes = file.read(4 * axes)
    if len(sizes) < 4 * axes:
        raise DamagedFile(f"{path} is damaged: cut short within its sizes")
    shape = struct.unpack(f">{axes}I", sizes)
    size = math.prod(shape) * dtype.itemsize
    need(2 * size, memory, str(path))
    data = file.read(size)
    if len(data) < size:
        raise DamagedFile(f"{path} is damaged: {len(data)} bytes of numbers instead of {size}")
    if file.read(1):
        raise DamagedFile(f"{path} is damaged: it goes on after its {size} bytes of numbers")
    return np.frombuffer(data, dtype=dtype).reshape(shape).astype(dtype.newbyteorder("="))
