"""wav files: PCM of 8, 16, 24 and 32 bits, and floating point, of any number of channels."""

import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from adder.errors import DamagedFile, UsageError

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
_BITS = {PCM: (8, 16, 24, 32), FLOAT: (32, 64)}
_KNOWN = {2: "ADPCM", 6: "A-law", 7: "mu-law", 17: "IMA ADPCM", 85: "MP3"}


class Wav(NamedTuple):
    """samples (frames, channels), int16 for 8 and 16 bits (one is 1/32768), else float32 in [-1, 1]."""

    samples: npt.NDArray[Any]
    rate: int


def read_wav(data: bytes, name: str) -> Wav:
    """Read the bytes of a wav file; `name` is the file that errors name.

    Raises:
        DamagedFile: it is no wav file, is cut short, or contradicts itself.
        UsageError: it is compressed, or of a sample size that is not read here.
    """
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise DamagedFile(f"{name} is no wav file: it begins with {data[:4].hex(' ') or 'nothing'}")
    layout: tuple[int, int, int, int] | None = None
    place = 12
    while place + 8 <= len(data):
        kind, size = data[place : place + 4], struct.unpack_from("<I", data, place + 4)[0]
        body = data[place + 8 : place + 8 + size]
        if len(body) < size:
            raise DamagedFile(
                f"{name} is cut short: its part {kind.decode('latin-1')!r} has {len(body)} of {size} bytes"
            )
        if kind == b"fmt ":
            layout = _layout(body, name)
        elif kind == b"data":
            if layout is None:
                raise DamagedFile(f"{name} is damaged: its samples come before their format")
            return _samples(body, *layout, name)
        place += 8 + size + size % 2
    raise DamagedFile(f"{name} is cut short: it has no samples")


def _layout(body: bytes, name: str) -> tuple[int, int, int, int]:
    """(format, channels, rate, bits)"""
    if len(body) < 16:
        raise DamagedFile(f"{name} is damaged: its format has {len(body)} bytes instead of 16")
    kind, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", body)
    if kind == EXTENSIBLE and len(body) >= 26:
        kind = struct.unpack_from("<H", body, 24)[0]
    if kind not in _BITS:
        word = _KNOWN.get(kind, f"format {kind}")
        raise UsageError(f"{name} is compressed ({word}): convert it to PCM")
    if bits not in _BITS[kind]:
        sizes = ", ".join(map(str, _BITS[kind]))
        what = "PCM" if kind == PCM else "floating point"
        raise UsageError(f"{name} has samples of {bits} bits, and {what} is read in {sizes}")
    if not channels or not rate or block != channels * bits // 8:
        raise DamagedFile(
            f"{name} is damaged: {channels} channels of {bits} bits at {rate} Hz in blocks of {block} bytes"
        )
    return kind, channels, rate, bits


def _samples(body: bytes, kind: int, channels: int, rate: int, bits: int, name: str) -> Wav:
    block = channels * bits // 8
    if not body or len(body) % block:
        what = f"{len(body)} bytes of samples in blocks of {block}" if body else "no samples"
        raise DamagedFile(f"{name} has {what}")
    samples: npt.NDArray[Any]
    if kind == FLOAT:
        samples = np.frombuffer(body, f"<f{bits // 8}").astype(np.float32)
        if not np.isfinite(samples).all():
            raise DamagedFile(f"{name} has samples that are no numbers")
    elif bits == 8:
        samples = (np.frombuffer(body, np.uint8).astype(np.int16) - 128) * np.int16(256)
    elif bits == 16:
        samples = np.frombuffer(body, "<i2").astype(np.int16)
    elif bits == 24:
        parts = np.frombuffer(body, np.uint8).reshape(-1, 3).astype(np.int32)
        whole = parts[:, 0] << 8 | parts[:, 1] << 16 | parts[:, 2] << 24  # in the upper 24 bits
        samples = (whole / 2.0**31).astype(np.float32)
    else:
        samples = (np.frombuffer(body, "<i4") / 2.0**31).astype(np.float32)
    return Wav(samples.reshape(-1, channels), rate)
