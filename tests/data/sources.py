"""Small labelled sources for the tests: written by hand, byte by byte."""

import gzip
import io
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

IDX_TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    code = IDX_TYPES[array.dtype.str[1:]]
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_images(folder: Path, train: int = 12, test: int = 4, packed: bool = True) -> Path:
    """Images of 3 x 4 bytes in three classes, which the first pixel tells."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        if not count:
            continue
        labels = np.arange(count, dtype=np.uint8) % 3
        images = generator.integers(0, 60, (count, 3, 4), dtype=np.uint8)
        images[:, 0, 0] = labels * 100
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx_bytes(array)
            path = folder / f"{part}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(data) if packed else data)
    return folder


def wav_bytes(samples: np.ndarray, rate: int = 8000, *, kind: int = 1, bits: int = 16) -> bytes:
    """A wav file of samples (frames,) or (frames, channels), already in the numbers of the file."""
    samples = samples[:, None] if samples.ndim == 1 else samples
    channels = samples.shape[1]
    if bits == 24:
        whole = samples.astype("<i4").reshape(-1, 1).view(np.uint8)[:, :3]
        body = whole.tobytes()
    else:
        letter = {1: "u" if bits == 8 else "i", 3: "f"}[kind]
        body = samples.astype(f"<{letter}{bits // 8}").tobytes()
    block = channels * bits // 8
    layout = struct.pack("<HHIIHH", kind, channels, rate, rate * block, block, bits)
    parts = _chunk(b"fmt ", layout) + _chunk(b"LIST", b"odd") + _chunk(b"data", body)
    return b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WAVE" + parts


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def tone(label: str, index: int, rate: int = 8000) -> bytes:
    """A tone whose height is the label's, of a length that is the index's."""
    length = 40 + 7 * index
    height = {"low": 200, "high": 1500}.get(label, 700)
    wave = np.sin(2 * np.pi * height / rate * (np.arange(length) + 3 * index))
    return wav_bytes((wave * 12000).astype(np.int16), rate)


def tones(count: int = 6) -> dict[str, bytes]:
    """Files of two labels by name: low_0.wav, high_0.wav, ..."""
    return {f"{label}_{i}.wav": tone(label, i) for i in range(count) for label in ("low", "high")}


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_series(path: Path, **changes: object) -> Path:
    """Series of two channels, some rising and some falling; a change of None leaves an array out."""
    generator = np.random.default_rng(0)
    arrays: dict[str, object] = {}
    for part, count in (("train", 16), ("test", 6)):
        labels = np.array(["down", "up"])[np.arange(count) % 2]
        slope = np.where(labels == "up", 1.0, -1.0)[:, None] * np.linspace(0, 1, 9)
        noise = generator.normal(size=(count, 9, 2)) / 20
        arrays |= {f"x_{part}": slope[..., None] + noise, f"y_{part}": labels}
    arrays = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path
