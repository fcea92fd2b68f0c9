"""wav files by label: a folder of them, or a .tar that is read where it lies."""

import fnmatch
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from adder.data.budget import need, readable
from adder.data.found import Found, Part
from adder.data.wav import Wav, read_wav
from adder.errors import DamagedFile, UsageError

_INT16 = 1 / 32768
_BLOCK = 512


class _Archive:
    """The wav files of a folder or a tar by their paths in it, sorted, with their sizes."""

    def __init__(self, sizes: dict[str, int], read: Callable[[str], bytes]) -> None:
        self.sizes = dict(sorted(sizes.items()))
        self.read = read


def holds_wav(path: Path) -> bool:
    """Whether a folder holds a wav file, at any depth."""
    return next(_wav_files(path), None) is not None


def read_sounds(path: Path, test_files: str | None, mix: bool, memory: int | None) -> Found:
    """Read the wav files of a folder or a .tar, with their labels.

    The label of a file is the name of its folder below the one that all of them share, or for a file
    that lies there directly the part of its name before the first "_".

    Args:
        test_files: which files are for testing: a pattern such as "*_[0-4].wav" that their name or path
            fits, or "@FILE", a list of paths, one a line.
        mix: average the channels of a file with several.
        memory: bytes that may be taken; None for any.

    Raises:
        UsageError: there are none, no label, several channels or sampling rates, a pattern that splits
            nothing, or too little memory.
        DamagedFile: a file, or the tar, is damaged.
    """
    with _open(path) as archive:
        names = list(archive.sizes)
        if not names:
            raise UsageError(f"{path} holds no .wav file")
        # A file's bytes, its samples, and all samples end to end.
        need(3 * sum(archive.sizes.values()), memory, str(path))
        labels = _labels(path, names)
        testing = _testing(path, names, test_files)
        wavs = _read_all(archive, path, names, mix)
    rate = wavs[0].rate
    train = _part(wavs, labels, [i for i in range(len(names)) if i not in testing])
    test = _part(wavs, labels, sorted(testing)) if testing else None
    dtypes = {part.values.dtype for part in (train, test) if part is not None}
    if len(dtypes) > 1:
        train, test = (_as_float(part) for part in (train, test))  # type: ignore[arg-type]
    scale = _INT16 if train.values.dtype == np.int16 else 1.0
    return Found(train, test, scale=scale, sampling_rate=float(rate))


def _read_all(archive: _Archive, path: Path, names: list[str], mix: bool) -> list[Wav]:
    wavs: list[Wav] = []
    for name in names:
        shown = f"{path}/{name}"
        wav = mixed(read_wav(archive.read(name), shown), shown, mix)
        if wavs and wav.rate != wavs[0].rate:
            raise UsageError(
                f"{path} mixes sampling rates: {names[0]} has {wavs[0].rate} Hz, and {name} "
                f"{wav.rate} Hz: resample them to one"
            )
        wavs.append(wav)
    return wavs


def mixed(wav: Wav, name: str, mix: bool) -> Wav:
    """The file with one channel; UsageError where it has several and they are not to be mixed."""
    channels = wav.samples.shape[1]
    if channels == 1:
        return wav
    if not mix:
        raise UsageError(f"{name} has {channels} channels: give --mix to average them")
    values = wav.samples.astype(np.float32).mean(1, keepdims=True)
    return Wav(values * _INT16 if wav.samples.dtype == np.int16 else values, wav.rate)


def _labels(path: Path, names: list[str]) -> list[str]:
    parts = [PurePosixPath(name).parts for name in names]
    shared = len(PurePosixPath(os.path.commonpath(["/".join(part[:-1]) for part in parts])).parts)
    labels = []
    for name, part in zip(names, parts, strict=True):
        label, found, _ = part[shared].partition("_")
        if len(part) > shared + 1:
            label = part[shared]
        elif not (found and label):
            raise UsageError(
                f"{path}/{name} has no label: put it into a folder named by its label, "
                "or name it LABEL_....wav"
            )
        labels.append(label)
    return labels


def _testing(path: Path, names: list[str], test_files: str | None) -> set[int]:
    if test_files is None:
        return set()
    if test_files.startswith("@"):
        chosen = _listed(path, names, Path(test_files[1:]))
    else:
        chosen = {
            number
            for number, name in enumerate(names)
            if any(fnmatch.fnmatchcase(each, test_files) for each in (name, Path(name).name))
        }
    if not 0 < len(chosen) < len(names):
        how = "every" if chosen else "no"
        raise UsageError(f"--test-files {test_files} fits {how} file of {path}, such as {names[0]}")
    return chosen


def _listed(path: Path, names: list[str], file: Path) -> set[int]:
    """The files of a list: each line is the end of the path of exactly one."""
    with readable(file):
        try:
            lines = file.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError:
            raise UsageError(f"{file} is no list of files: it is not UTF-8 text") from None
    by_end: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        parts = PurePosixPath(name).parts
        for start in range(len(parts)):
            by_end.setdefault("/".join(parts[start:]), []).append(number)
    chosen = set()
    for line in filter(None, map(str.strip, lines)):
        fitting = by_end.get(line, [])
        if len(fitting) != 1:
            raise UsageError(f"{file}: {line} is {len(fitting)} files of {path}, expected one")
        chosen.add(fitting[0])
    return chosen


def _part(wavs: list[Wav], labels: list[str], chosen: list[int]) -> Part:
    offsets = np.cumsum([0] + [len(wavs[i].samples) for i in chosen]).astype(np.int64)
    small = all(wavs[i].samples.dtype == np.int16 for i in chosen)
    values: npt.NDArray[Any] = np.empty((int(offsets[-1]), 1), np.int16 if small else np.float32)
    for place, i in enumerate(chosen):
        samples = wavs[i].samples
        scale = np.float32(_INT16) if samples.dtype == np.int16 and not small else 1
        values[offsets[place] : offsets[place + 1]] = samples * scale
    return Part(values, offsets, tuple(labels[i] for i in chosen))


def _as_float(part: Part) -> Part:
    if part.values.dtype != np.int16:
        return part
    return Part(part.values * np.float32(_INT16), part.offsets, part.names)


@contextmanager
def _open(path: Path) -> Iterator[_Archive]:
    with readable(path):
        if path.is_dir():
            sizes = {
                file.relative_to(path).as_posix(): file.stat().st_size for file in _wav_files(path)
            }
            yield _Archive(sizes, lambda name: (path / name).read_bytes())
            return
        try:
            with tarfile.open(path, "r:") as tar:
                members = _members(tar, path)
                sizes = {name: member.size for name, member in members.items()}
                yield _Archive(sizes, lambda name: tar.extractfile(members[name]).read())  # type: ignore[union-attr]
        except tarfile.TarError as error:
            raise DamagedFile(
                f"{path} is damaged, or no uncompressed .tar: {' '.join(str(error).split())}"
            ) from None


def _members(tar: tarfile.TarFile, path: Path) -> dict[str, tarfile.TarInfo]:
    """The wav files of a tar by name. Nothing is ever written to disk, but a name must be sound too."""
    found: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        parts = PurePosixPath(member.name).parts
        if member.name.startswith("/") or ".." in parts:
            raise UsageError(f"{path} is not to be trusted: it holds the path {member.name!r}")
        if not _is_wav(parts[-1] if parts else "") or member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise UsageError(f"{path}: {member.name} is a link or a device, not a file")
        name = PurePosixPath(*parts).as_posix()
        if name in found:
            raise UsageError(f"{path} holds two files named {name}")
        found[name] = member
    # tarfile takes a header that it cannot read for the end.
    with path.open("rb") as file:
        file.seek(tar.offset)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise DamagedFile(f"{path} is damaged: it has no end mark at byte {tar.offset}")
    return found


def _is_wav(name: str) -> bool:
    return name.lower().endswith(".wav") and not name.startswith(".")


def _wav_files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if _is_wav(name) and Path(parent, name).is_file():
                yield Path(parent, name)
