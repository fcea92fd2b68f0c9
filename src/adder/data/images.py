"""A folder of idx files as sequences: an image is its pixels, row after row."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adder.data.found import Found, Part, of_one_length
from adder.data.idx import idx_files, read_idx
from adder.errors import DamagedFile, UsageError


def read_images(folder: Path, tokens: bool, memory: int | None) -> Found:
    """Read the idx files of a folder, and the official test split where it has one.

    Bytes become values in [0, 1], or with `tokens` ids below 256.
    """
    files = idx_files(folder)
    assert files is not None
    arrays = {}
    for name, path in files.items():
        arrays[name] = read_idx(path, memory)
        memory = None if memory is None else memory - arrays[name].nbytes
    train = _part(arrays, files, "train")
    test = _part(arrays, files, "test") if "test-images" in files else None
    if test is not None and test.values.shape[1] != train.values.shape[1]:
        raise UsageError(
            f"{files['test-images']} has {test.values.shape[1]} channels, "
            f"and {files['train-images']} {train.values.shape[1]}"
        )
    small = all(part.values.dtype == np.uint8 for part in (train, test) if part is not None)
    if tokens and not (small and train.values.shape[1] == 1):
        raise UsageError(
            f"{files['train-images']} cannot be read as tokens: it holds no grey bytes"
        )
    scale = 1 / 255 if small and not tokens else 1.0
    return Found(train, test, scale=scale, vocabulary=256 if tokens else None)


def _part(arrays: dict[str, npt.NDArray[Any]], files: dict[str, Path], part: str) -> Part:
    images, labels = arrays[f"{part}-images"], arrays[f"{part}-labels"]
    path = files[f"{part}-images"]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DamagedFile(f"{files[f'{part}-labels']} holds no labels: its shape is {labels.shape}")
    if not 2 <= images.ndim <= 4:
        raise UsageError(
            f"{path} holds arrays of the shape {images.shape}: expected (count, length), "
            "(count, rows, columns) or (count, rows, columns, channels)"
        )
    if 0 in images.shape:
        raise UsageError(f"{path} is empty: its shape is {images.shape}")
    if len(images) != len(labels):
        raise DamagedFile(
            f"{path} holds {len(images)} images, and {files[f'{part}-labels']} {len(labels)} labels"
        )
    channels = images.shape[3] if images.ndim == 4 else 1
    return of_one_length(
        images.reshape(len(images), -1, channels), [str(label) for label in labels.tolist()]
    )
