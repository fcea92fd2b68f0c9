"""A sequence as it comes: numbers line by line, raw samples from a pipe, or a wav file."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from adder.data.budget import readable
from adder.data.sounds import mixed
from adder.data.wav import read_wav
from adder.errors import UsageError

Chunks = Iterator[npt.NDArray[Any]]

_INT16 = 1 / 32768
_SHOWN = 40


def read_numbers(
    file: BinaryIO, channels: int, tokens: int | None, chunk: int, name: str
) -> Chunks:
    """Yield (steps, channels) float32, or (steps,) int64 tokens, of lines of numbers.

    A line is one step, and a chunk comes out as soon as it is full; commas count as blanks, and an
    empty line is none.

    Raises:
        UsageError: a line holds another number of numbers, or none at all; or a token is unknown.
    """
    held: list[list[float]] = []
    for number, line in enumerate(file, 1):
        step = _numbers(line, channels, tokens, f"{name}, line {number}")
        if step:
            held.append(step)
        if len(held) == chunk:
            yield _array(held, tokens)
            held = []
    if held:
        yield _array(held, tokens)


def _numbers(line: bytes, channels: int, tokens: int | None, where: str) -> list[float]:
    words = re.split(r"[\s,;]+", line.decode("utf-8", errors="replace").strip())
    if words == [""]:
        return []
    step: list[float] = []
    for word in words:
        try:
            step.append(float(word))
        except ValueError:
            raise UsageError(f"{where}: {word[:_SHOWN]!r} is no number") from None
    if len(step) != channels:
        raise UsageError(f"{where}: {len(step)} numbers, expected {channels}")
    if not np.isfinite(step).all():
        raise UsageError(f"{where}: {' '.join(words)[:_SHOWN]} is not finite")
    if tokens is not None and not (step[0].is_integer() and 0 <= step[0] < tokens):
        raise UsageError(f"{where}: {words[0][:_SHOWN]} is no token, expected 0 to {tokens - 1}")
    return step


def _array(held: list[list[float]], tokens: int | None) -> npt.NDArray[Any]:
    if tokens is not None:
        return np.array(held, dtype=np.int64)[:, 0]
    return np.array(held, dtype=np.float32)


def read_raw(file: BinaryIO, chunk: int) -> Chunks:
    """Yield (steps, 1) float32 of raw samples, 16 bits little-endian (s16le), as they come.

    Raises:
        UsageError: the stream ends in the middle of a sample.
    """
    read = getattr(file, "read1", file.read)  # what is there now, without waiting for more
    held = b""
    while data := read(2 * chunk - len(held)):
        held += data
        if len(held) >= 2:
            whole = len(held) // 2 * 2
            yield _samples(held[:whole])
            held = held[whole:]
    if held:
        raise UsageError("the raw samples end in the middle of one: s16le has two bytes for each")


def _samples(data: bytes) -> npt.NDArray[Any]:
    return (np.frombuffer(data, "<i2").astype(np.float32) * np.float32(_INT16))[:, None]


def read_wav_file(path: Path, mix: bool) -> tuple[npt.NDArray[Any], float]:
    """The samples of a wav file (steps, 1) float32, and its sampling rate in Hz."""
    with readable(path):
        data = path.read_bytes()
    wav = mixed(read_wav(data, str(path)), str(path), mix)
    scale = _INT16 if wav.samples.dtype == np.int16 else 1.0
    return wav.samples.astype(np.float32) * np.float32(scale), float(wav.rate)


def in_chunks(samples: npt.NDArray[Any], chunk: int) -> Chunks:
    """Yield an array in chunks."""
    for start in range(0, len(samples), chunk):
        yield samples[start : start + chunk]
