"""Labelled sequences: images as pixels, spoken words as samples, tabular series."""

import hashlib
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from adder.data.budget import readable
from adder.data.found import Found, Part
from adder.data.idx import idx_files
from adder.data.images import read_images
from adder.data.npz import read_series
from adder.data.sequences import Sequences
from adder.data.sounds import holds_wav, read_sounds
from adder.errors import UsageError

IDX, WAV, NPZ = "idx", "wav", "npz"
FORMS = "a folder of idx files, a folder or a .tar of wav files, or an .npz"


@dataclass(frozen=True)
class LabelledOptions:
    """How a source is read.

    Args:
        tokens: pixels of images, or the numbers of an .npz, are token ids.
        test_files: which wav files are for testing; see `read_sounds`.
        mix: average the channels of wav files.
    """

    tokens: bool = False
    test_files: str | None = None
    mix: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LabelledOptions":
        """Read what `to_dict` gave; UsageError names a key that is unknown."""
        if unknown := sorted(values.keys() - {field.name for field in fields(cls)}):
            raise UsageError(f"unknown option of a source: {unknown[0]}")
        return cls(**values)


@dataclass(frozen=True)
class Labelled:
    """Sequences with a class for each, and where they came from.

    Args:
        name: gives the same again to `read_labelled`, with the same options.
        form: "idx", "wav" or "npz".
        labels: the names of the classes.
        test: the official test part, where there is one: never trained on.
        sampling_rate: in Hz, of sounds.
        vocabulary: how many tokens there are, where the source was read as tokens.
    """

    name: str
    form: str
    options: LabelledOptions
    labels: tuple[str, ...]
    train: Sequences
    test: Sequences | None
    sampling_rate: float | None
    vocabulary: int | None

    @property
    def size_in_bytes(self) -> int:
        return sum(part.values.nbytes for part in self._parts())

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of everything in it: a resumed run checks that its source is unchanged."""
        digest = hashlib.sha256(repr((self.labels, self.sampling_rate)).encode())
        for part in self._parts():
            for array in (part.labels, part.offsets, part.values):
                digest.update(f"{array.dtype} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def _parts(self) -> list[Sequences]:
        return [self.train] if self.test is None else [self.train, self.test]


def labelled_form(source: str | None) -> str | None:
    """Which form of labelled sequences a source has; None for anything else, such as a text."""
    if not source or source == "-":
        return None
    path = Path(source)
    try:
        if path.is_dir():
            if idx_files(path) is not None:
                return IDX
            return WAV if holds_wav(path) else None
        if not path.is_file():
            return None
    except (OSError, ValueError):
        return None  # whoever reads it says what is wrong with it
    return {".npz": NPZ, ".tar": WAV}.get(path.suffix.lower())


def read_labelled(
    source: str,
    options: LabelledOptions | None = None,
    *,
    memory: int | None = None,
    labels: Sequence[str] | None = None,
) -> Labelled:
    """Read a source of labelled sequences.

    Args:
        source: a folder of idx files as MNIST's, a folder of wav files or an uncompressed .tar of one,
            or an .npz; see `read_images`, `read_sounds` and `read_series`.
        memory: bytes that may be taken, None for any: a source that needs more is refused before
            it is read.
        labels: the classes, where a model has them already; otherwise those of the training part,
            at least two.

    Raises:
        UsageError: the source is missing, of another kind, empty, or does not fit its options.
        DamagedFile: a file is cut short or damaged; the message names it.
    """
    given = options or LabelledOptions()
    path = Path(source)
    form = labelled_form(source)
    if form is None:
        with readable(source):
            if stat.S_ISDIR(path.stat().st_mode):
                next(path.iterdir(), None)
        raise UsageError(f"{source} holds no labelled sequences: give {FORMS}")
    _refuse_options(source, form, given)
    with readable(path):
        if form == IDX:
            found = read_images(path, given.tokens, memory)
        elif form == WAV:
            found = read_sounds(path, given.test_files, given.mix, memory)
        else:
            found = read_series(path, given.tokens, memory)
    return _labelled(str(path.resolve()), form, given, found, labels)


def _refuse_options(source: str, form: str, options: LabelledOptions) -> None:
    refused = {
        "--test-files": form != WAV and options.test_files is not None,
        "--mix": form != WAV and options.mix,
        "--tokens": form == WAV and options.tokens,
    }
    for option, wrong in refused.items():
        if wrong:
            kind = "wav files" if form != WAV else "idx and .npz files"
            raise UsageError(f"{option} is for {kind}, and {source} holds {form} files")


def _labelled(
    name: str, form: str, options: LabelledOptions, found: Found, labels: Sequence[str] | None
) -> Labelled:
    classes = _classes(found.train.names) if labels is None else tuple(labels)
    if labels is None and len(classes) < 2:
        raise UsageError(f"{name} has one class only, {classes[0]}: there is nothing to tell apart")
    train = _sequences(found.train, found, classes, name, "has")
    test = None
    if found.test is not None:
        test = _sequences(found.test, found, classes, name, "has in its test part")
    return Labelled(
        name, form, options, classes, train, test, found.sampling_rate, found.vocabulary
    )


def _classes(names: Sequence[str]) -> tuple[str, ...]:
    """The distinct labels, numbers in their order."""
    distinct = set(names)
    numbers = all(name.removeprefix("-").isdecimal() for name in distinct)
    return tuple(sorted(distinct, key=int if numbers else str))


def _sequences(
    part: Part, found: Found, classes: tuple[str, ...], name: str, has: str
) -> Sequences:
    number = {label: index for index, label in enumerate(classes)}
    if unknown := sorted(set(part.names) - number.keys()):
        known = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
        raise UsageError(f"{name} {has} the label {unknown[0]}, and the classes are {known}")
    labels = np.array([number[label] for label in part.names], dtype=np.int64)
    tokens = found.vocabulary is not None
    return Sequences(part.values, part.offsets, labels, found.scale, tokens)
