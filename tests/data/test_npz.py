import pickle
import zipfile

import numpy as np
import pytest

from adder.data.npz import read_series
from adder.errors import DamagedFile, UsageError

from .sources import write_series


def read(path, tokens=False, memory=None):
    return read_series(path, tokens, memory)


def test_training_and_test_part(tmp_path):
    found = read(write_series(tmp_path / "x.npz"))
    assert found.train.values.shape == (16 * 9, 2)
    assert found.train.offsets.tolist() == list(range(0, 16 * 9 + 1, 9))
    assert found.train.names[:3] == ("down", "up", "down")
    assert len(found.test.names) == 6


def test_x_and_y_alone_and_lengths(tmp_path):
    np.savez(
        tmp_path / "x.npz",
        x=np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan]]),
        y=[4, 7],
        lengths=[2, 1],
    )
    found = read(tmp_path / "x.npz")
    assert found.train.values[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert found.train.offsets.tolist() == [0, 2, 3]
    assert found.train.names == ("4", "7")
    assert found.test is None


def test_tokens(tmp_path):
    np.savez(tmp_path / "x.npz", x=[[0, 3], [1, 2]], y=[0, 1])
    assert read(tmp_path / "x.npz").vocabulary is None
    found = read(tmp_path / "x.npz", tokens=True)
    assert (found.vocabulary, found.train.values[:, 0].tolist()) == (4, [0, 3, 1, 2])


X, Y = np.ones((4, 3)), np.array([0, 1, 0, 1])
GAP = np.array([[1.0, 2.0], [3.0, np.inf]])


@pytest.mark.parametrize(
    ("arrays", "tokens", "message"),
    [
        ({"a": X}, False, "holds a: expected x_train and y_train"),
        ({}, False, "holds nothing"),
        ({"x_train": X, "y_train": Y, "x_test": X}, False, "lacks y_test"),
        ({"x_train": X, "y_train": Y, "x_test": X[..., None].repeat(2, 2), "y_test": Y}, False,
         "x_test has 2 channels, and x_train 1"),
        ({"x": X[0], "y": Y}, False, r"x is float64 of the shape \(3,\)"),
        ({"x": X[:, :0], "y": Y}, False, r"x is float64 of the shape \(4, 0\)"),
        ({"x": X.astype(complex), "y": Y}, False, "x is complex128"),
        ({"x": X, "y": Y[:3]}, False, r"y is int64 of the shape \(3,\), expected .* \(4,\)"),
        ({"x": X, "y": Y + 0.5}, False, "y is float64"),
        ({"x": X, "y": Y, "lengths": [1, 2, 3, 4]}, False, r"lengths must be \(4,\) .* 1 to 3"),
        ({"x": X, "y": Y, "lengths": [1, 2, 3, 0]}, False, "lengths must be"),
        ({"x": GAP, "y": [0, 1]}, False, r"x\[1, 1\] is no finite number"),
        ({"x": X, "y": Y}, True, "x cannot be read as tokens"),
        ({"x": -X.astype(int), "y": Y}, True, "x cannot be read as tokens"),
        ({"x_train": X.astype(int), "y_train": Y, "x_test": X.astype(int) * 5, "y_test": Y}, True,
         "x_test holds the token 5, and x_train none above 1"),
    ],
)  # fmt: skip
def test_unfit_arrays_are_named(tmp_path, arrays, tokens, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "x.npz", tokens)


def test_rows_of_mixed_lengths_are_not_unpickled(tmp_path):
    rows = np.empty(2, dtype=object)
    rows[0], rows[1] = np.ones(3), np.ones(4)
    np.savez(tmp_path / "x.npz", x=rows, y=[0, 1])
    with pytest.raises(
        UsageError,
        match="x is an array of Python objects, and adder unpickles nothing: pad the rows",
    ):
        read(tmp_path / "x.npz")


def test_memory_is_asked_for_before_it_is_taken(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((1000, 1000)), y=np.zeros(1000, int))
    assert (tmp_path / "x.npz").stat().st_size < 10**5
    with pytest.raises(UsageError, match=r"GiB of memory"):
        read(tmp_path / "x.npz", memory=10**6)


def test_damaged_files_are_named(tmp_path):
    path = write_series(tmp_path / "x.npz")
    data = path.read_bytes()
    for length in (0, 4, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedFile, match=r"x\.npz is damaged, or no \.npz file"):
            read(path)
    flipped = bytearray(data)
    flipped[len(data) // 3] ^= 255
    path.write_bytes(flipped)
    with pytest.raises(DamagedFile, match=r"x\.npz is damaged"):
        read(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(DamagedFile, match=r"x\.npz is damaged, or no \.npz file"):
        read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"no array")
        archive.writestr("y.npy", b"\x93NUMPY\x01\x00")
    with pytest.raises((DamagedFile, UsageError), match=r"x\.npz"):
        read(path)
