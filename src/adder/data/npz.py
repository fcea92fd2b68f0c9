"""Tabular series in an .npz of NumPy: x_train, y_train, x_test, y_test, or x and y alone."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adder.data.budget import need, readable
from adder.data.found import Found, Part, of_lengths, of_one_length
from adder.errors import DamagedFile, UsageError

_HELP = "expected x_train and y_train, with x_test and y_test or without, or x and y"


def read_series(path: Path, tokens: bool, memory: int | None) -> Found:
    """Read an .npz file: x is (n, l) or (n, l, d), y is (n,), whole numbers or words.

    lengths_train, lengths_test (or lengths) (n,) say how many steps of each row are real. Nothing is
    unpickled. With `tokens`, x holds token ids.

    Raises:
        DamagedFile: it is no .npz file, or damaged.
        UsageError: it lacks an array, or one is of another kind.
    """
    with readable(path):
        try:
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
            need(2 * size, memory, str(path))
            with np.load(path, allow_pickle=False) as arrays:
                return _found(arrays, path, tokens)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DamagedFile(f"{path} is damaged, or no .npz file: {error}") from None


def _found(arrays: Mapping[str, Any], path: Path, tokens: bool) -> Found:
    names = set(arrays.keys())
    if {"x", "y"} <= names:
        train, test = _part(arrays, path, "x", "y", "lengths", tokens), None
    elif {"x_train", "y_train"} <= names:
        train = _part(arrays, path, "x_train", "y_train", "lengths_train", tokens)
        test = None
        if {"x_test", "y_test"} & names:
            test = _part(arrays, path, "x_test", "y_test", "lengths_test", tokens)
    else:
        held = ", ".join(sorted(names)) or "nothing"
        raise UsageError(f"{path} holds {held}: {_HELP}")
    if test is not None and test.values.shape[1] != train.values.shape[1]:
        raise UsageError(
            f"{path}: x_test has {test.values.shape[1]} channels, and x_train {train.values.shape[1]}"
        )
    vocabulary = int(train.values.max()) + 1 if tokens else None
    if vocabulary is not None and test is not None and test.values.max() >= vocabulary:
        raise UsageError(
            f"{path}: x_test holds the token {test.values.max()}, and x_train none above {vocabulary - 1}"
        )
    return Found(train, test, vocabulary=vocabulary)


def _part(
    arrays: Mapping[str, Any], path: Path, x_name: str, y_name: str, lengths_name: str, tokens: bool
) -> Part:
    x, y = _array(arrays, path, x_name), _array(arrays, path, y_name)
    if x.ndim not in (2, 3) or 0 in x.shape or x.dtype.kind not in "iuf":
        raise UsageError(
            f"{path}: {x_name} is {x.dtype} of the shape {x.shape}, expected numbers (n, l) or (n, l, d)"
        )
    if y.shape != (len(x),) or y.dtype.kind not in "iubU":
        raise UsageError(
            f"{path}: {y_name} is {y.dtype} of the shape {y.shape}, "
            f"expected whole numbers or words ({len(x)},)"
        )
    if tokens and not (x.ndim == 2 and x.dtype.kind in "iu" and x.min() >= 0):
        raise UsageError(
            f"{path}: {x_name} cannot be read as tokens: it is {x.dtype} of the shape {x.shape}, "
            "expected whole numbers (n, l) of at least 0"
        )
    names = [str(name) for name in y.tolist()]
    values = x[..., None] if x.ndim == 2 else x
    if lengths_name in arrays:
        lengths = _array(arrays, path, lengths_name)
        good = lengths.shape == (len(x),) and lengths.dtype.kind in "iu"
        if not good or lengths.min() < 1 or lengths.max() > x.shape[1]:
            raise UsageError(
                f"{path}: {lengths_name} must be ({len(x)},) whole numbers from 1 to {x.shape[1]}"
            )
        part = of_lengths(values, lengths.astype(np.int64), names)
    else:
        part = of_one_length(values, names)
    if x.dtype.kind == "f" and not np.isfinite(part.values).all():
        step = int(np.argmin(np.isfinite(part.values).all(1)))
        row = int(np.searchsorted(part.offsets, step, side="right")) - 1
        raise UsageError(
            f"{path}: {x_name}[{row}, {step - part.offsets[row]}] is no finite number: "
            "fill the gaps, or end the row before with lengths"
        )
    return part


def _array(arrays: Mapping[str, Any], path: Path, name: str) -> npt.NDArray[Any]:
    if name not in arrays:
        raise UsageError(f"{path} lacks {name}: {_HELP}")
    try:
        return np.asarray(arrays[name])
    except ValueError as error:
        if "pickle" not in str(error) and "Object" not in str(error):
            raise DamagedFile(f"{path} is damaged: {name}: {error}") from None
        raise UsageError(
            f"{path}: {name} is an array of Python objects, and adder unpickles nothing: "
            f"pad the rows to one length and give their lengths as an array of their own"
        ) from None
