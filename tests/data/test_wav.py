import io
import struct
import wave

import numpy as np
import pytest

from adder.data.wav import read_wav
from adder.errors import DamagedFile, UsageError

from .sources import wav_bytes


@pytest.mark.parametrize(
    ("kind", "bits", "numbers", "expected"),
    [
        (1, 8, [0, 128, 255], [-1.0, 0.0, 127 / 128]),
        (1, 16, [-32768, 0, 32767], [-1.0, 0.0, 32767 / 32768]),
        (1, 24, [-(2**23), -1, 2**23 - 1], [-1.0, -(2.0**-23), 1 - 2.0**-23]),
        (1, 32, [-(2**31), 2**30, 0], [-1.0, 0.5, 0.0]),
        (3, 32, [-1.0, 0.25, 1.5], [-1.0, 0.25, 1.5]),
        (3, 64, [-1.0, 0.25, 1.5], [-1.0, 0.25, 1.5]),
    ],
)
def test_every_sample_size(kind, bits, numbers, expected):
    wav = read_wav(wav_bytes(np.array(numbers), 11025, kind=kind, bits=bits), "x.wav")
    values = wav.samples / (32768 if wav.samples.dtype == np.int16 else 1.0)
    assert wav.rate == 11025
    assert values[:, 0].tolist() == expected


def test_it_reads_what_python_writes():
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44100)
        file.writeframes(struct.pack("<6h", 1, -1, 2, -2, 3, -3))
    wav = read_wav(buffer.getvalue(), "x.wav")
    assert wav.samples.tolist() == [[1, -1], [2, -2], [3, -3]]


def test_extensible_format_is_what_it_stands_for():
    data = wav_bytes(np.array([5, 6]))
    layout = data[20:36]
    longer = struct.pack("<H", 0xFFFE) + layout[2:] + struct.pack("<HHIH", 22, 16, 0, 1) + bytes(14)
    changed = data[:16] + struct.pack("<I", len(longer)) + longer + data[36:]
    assert read_wav(changed, "x.wav").samples.tolist() == [[5], [6]]


def with_layout(**fields):
    """A wav file with some of its format's numbers changed."""
    names = ["kind", "channels", "rate", "speed", "block", "bits"]
    data = bytearray(wav_bytes(np.array([5, 6])))
    held = dict(zip(names, struct.unpack_from("<HHIIHH", data, 20), strict=True)) | fields
    struct.pack_into("<HHIIHH", data, 20, *held.values())
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", DamagedFile, "x.wav is no wav file: it begins with nothing"),
        (b"ID3\x04" + bytes(20), DamagedFile, "is no wav file: it begins with 49 44 33 04"),
        (with_layout(kind=17), UsageError, r"is compressed \(IMA ADPCM\): convert it to PCM"),
        (with_layout(kind=999), UsageError, "format 999"),
        (with_layout(bits=12), UsageError, "samples of 12 bits, and PCM is read in 8, 16, 24, 32"),
        (with_layout(kind=3, bits=16), UsageError, "floating point is read in 32, 64"),
        (with_layout(channels=0), DamagedFile, "0 channels of 16 bits"),
        (with_layout(rate=0), DamagedFile, "at 0 Hz"),
        (with_layout(block=3), DamagedFile, "in blocks of 3 bytes"),
        (wav_bytes(np.array([], dtype=np.int16)), DamagedFile, "has no samples"),
        (
            wav_bytes(np.array([np.nan]), kind=3, bits=32),
            DamagedFile,
            "samples that are no numbers",
        ),
    ],
)
def test_what_cannot_be_read_is_named(data, error, message):
    with pytest.raises(error, match=message):
        read_wav(data, "x.wav")


def test_every_cut_is_found():
    data = wav_bytes(np.arange(6))
    for length in range(len(data)):
        with pytest.raises(DamagedFile, match=r"x\.wav (is|has)"):
            read_wav(data[:length], "x.wav")
