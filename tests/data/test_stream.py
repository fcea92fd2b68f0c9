import io

import numpy as np
import pytest

from adder.data.stream import in_chunks, read_numbers, read_raw, read_wav_file
from adder.errors import DamagedFile, UsageError

from .sources import wav_bytes


def numbers(text: bytes, channels=1, tokens=None, chunk=1):
    return [c.tolist() for c in read_numbers(io.BytesIO(text), channels, tokens, chunk, "x")]


def test_a_line_is_a_step():
    assert numbers(b"1\n\n-2.5\r\n3e-1") == [[[1.0]], [[-2.5]], [[pytest.approx(0.3)]]]
    assert numbers(b"1 2\n3,4\n5;6\n", channels=2, chunk=2) == [[[1, 2], [3, 4]], [[5, 6]]]
    assert numbers(b"1\n2\n", tokens=3, chunk=2) == [[1, 2]]


@pytest.mark.parametrize(
    ("text", "tokens", "message"),
    [
        (b"1\nabc\n", None, "x, line 2: 'abc' is no number"),
        (b"1 2\n", None, "x, line 1: 2 numbers, expected 1"),
        (b"nan\n", None, "x, line 1: nan is not finite"),
        (b"\xff\xfe\n", None, "is no number"),
        (b"3\n", 3, "3 is no token, expected 0 to 2"),
        (b"0.5\n", 3, "0.5 is no token"),
    ],
)
def test_lines_that_are_no_step(text, tokens, message):
    with pytest.raises(UsageError, match=message):
        numbers(text, tokens=tokens)


class Trickle(io.BytesIO):
    """A pipe that gives three bytes at a time."""

    def read1(self, size=-1):
        return super().read(min(3, size))


@pytest.mark.parametrize("kind", [io.BytesIO, Trickle])
def test_raw_samples_come_as_they_are(kind):
    samples = np.array([1, -2, 300, -32768, 5], dtype="<i2")
    pieces = list(read_raw(kind(samples.tobytes()), 2))
    assert max(map(len, pieces)) <= 2
    assert np.concatenate(pieces)[:, 0].tolist() == (samples / 32768).tolist()


def test_half_a_sample_is_refused():
    with pytest.raises(UsageError, match="end in the middle of one"):
        list(read_raw(io.BytesIO(b"\1\2\3"), 4))


def test_a_wav_file(tmp_path):
    path = tmp_path / "x.wav"
    path.write_bytes(wav_bytes(np.array([16384, -8192], dtype=np.int16), 11025))
    samples, rate = read_wav_file(path, False)
    assert (samples[:, 0].tolist(), rate) == ([0.5, -0.25], 11025.0)
    assert [len(piece) for piece in in_chunks(np.zeros((5, 1)), 2)] == [2, 2, 1]
    path.write_bytes(b"RIFF")
    with pytest.raises(DamagedFile, match=r"x.wav is no wav file"):
        read_wav_file(path, False)
    with pytest.raises(UsageError, match="there is no file or folder nowhere"):
        read_wav_file(tmp_path.__class__("nowhere"), False)
