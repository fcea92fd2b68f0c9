"""The tensors of a model's folder: one safetensors file, several with an index, or a pickle that holds tensors only."""

import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adder.errors import DamagedFile
from adder.models.formats.safetensors_header import Header, read_header

WEIGHTS = "model.safetensors"
PICKLE = "pytorch_model.bin"
CONSOLIDATED = "consolidated.safetensors"
_INDEX = ".index.json"
_LONGEST_INDEX = 8 << 20
# Beside the tensors that adder writes: what they hold, and the config they were written with.
DIGEST, CONFIG = "sha256", "adder.config"


class Weights(Mapping[str, Tensor]):
    """Tensors by name, of which only names and shapes are read at first.

    Args:
        shapes: of each tensor.
        load: returns the tensor of a name.
        metadata: what the writer of the file put beside them.
    """

    def __init__(
        self,
        source: Path,
        shapes: dict[str, tuple[int, ...]],
        load: Callable[[str], Tensor],
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.source, self.shapes, self.metadata = source, shapes, metadata or {}
        self._load = load
        self._digests: dict[str, str] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        tensor = self._load(name)
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise DamagedFile(f"{self.source}: {name} holds a NaN or an infinity")
        if DIGEST in self.metadata and name not in self._digests:
            self._digests[name] = _digest(name, tensor)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def count(self) -> int:
        """How many numbers the tensors hold."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def expect_config(self, values: dict[str, Any], source: Path) -> None:
        """Refuse a config that is not the one which the weights were written with, where they say which that was.

        Raises:
            DamagedFile: it is another; the message names the first key that differs.
        """
        if (CONFIG in self.metadata) != (DIGEST in self.metadata):
            raise DamagedFile(f"{self.source}: what adder wrote beside its tensors is damaged")
        if CONFIG not in self.metadata:
            return
        try:
            written = json.loads(self.metadata[CONFIG])
            given = json.loads(json.dumps(values))
            differ = [
                key for key in written.keys() | given.keys() if written.get(key) != given.get(key)
            ]
        except (ValueError, AttributeError, RecursionError) as error:
            raise DamagedFile(f"{self.source}: the config in it is damaged: {error}") from None
        for key in sorted(differ):
            raise DamagedFile(
                f"{source}: {key} is {given.get(key, 'as it comes')!r}, and {self.source.name} was written with "
                f"{written.get(key, 'as it comes')!r}: load the model as it was, change model.config and save it again"
            )

    def verify(self) -> None:
        """Compare what was read with the digest that the writer put beside it, where there is one.

        Raises:
            DamagedFile: a number is not the one that was written.
        """
        if DIGEST in self.metadata and self.metadata[DIGEST] != _combined(
            self._digests.get(name, "") for name in sorted(self.shapes)
        ):
            raise DamagedFile(
                f"{self.source}: is damaged: its numbers are not those that were written"
            )

    def renamed(self, rename: Callable[[str], str]) -> "Weights":
        """Return the same tensors under other names.

        Raises:
            DamagedFile: two of them get one name.
        """
        theirs: dict[str, str] = {}
        for name in self.shapes:
            if (new := rename(name)) in theirs:
                raise DamagedFile(
                    f"{self.source}: {theirs[new]} and {name} are one tensor of a model"
                )
            theirs[new] = name
        shapes = {new: self.shapes[name] for new, name in theirs.items()}
        return Weights(self.source, shapes, lambda new: self._load(theirs[new]), self.metadata)

    def without(self, name: str) -> "Weights":
        """Return all tensors but one."""
        shapes = {each: shape for each, shape in self.shapes.items() if each != name}
        return Weights(self.source, shapes, self._load, self.metadata)


def find_weights(folder: Path) -> Path | None:
    """Return the file that says where the tensors of a folder are: safetensors before a pickle, or None."""
    for name in (WEIGHTS, WEIGHTS + _INDEX, PICKLE, PICKLE + _INDEX, CONSOLIDATED):
        if (folder / name).is_file():
            return folder / name
    return None


def open_weights(path: Path) -> Weights:
    """Return the tensors that `find_weights` found.

    Raises:
        DamagedFile: a file is not what it should be, holds more than tensors, or the index does not fit the files.
    """
    try:
        if not path.name.endswith(_INDEX):
            return _open_pickle(path) if path.name == PICKLE else _open_safetensors(path)
        return _open_shards(path)
    except OSError as error:
        raise DamagedFile(f"{path}: cannot be read: {error.strerror or error}") from error


def _open_safetensors(path: Path) -> Weights:
    header = read_header(path)
    file = _open(header)
    shapes = {name: entry.shape for name, entry in header.entries.items()}
    return Weights(path, shapes, file.get_tensor, header.metadata)


def _open(header: Header) -> Any:
    try:
        return safe_open(header.path, framework="pt")
    except SafetensorError as error:
        raise DamagedFile(f"{header.path}: cannot be read: {error}") from error


def _open_pickle(path: Path) -> Weights:
    """Read a file of torch.save, as the original mamba_ssm wrote them; code in it is never run."""
    if not zipfile.is_zipfile(path):
        raise DamagedFile(f"{path}: is no file that torch.save wrote, or one of before torch 1.6")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged pickle makes of the interpreter of pickles
        reason = str(error).split("\n")[0]
        raise DamagedFile(
            f"{path}: is no file of tensors alone that torch.save wrote: {reason}"
        ) from None
    if not isinstance(values, dict) or not all(
        isinstance(name, str) and isinstance(each, Tensor) for name, each in values.items()
    ):
        raise DamagedFile(f"{path}: holds other things than tensors by name")
    return Weights(
        path, {name: tuple(each.shape) for name, each in values.items()}, values.__getitem__
    )


def _open_shards(path: Path) -> Weights:
    index = _read_index(path)
    opened: dict[str, Weights] = {}
    files = sorted(set(index.values()))
    for file in files:
        if Path(file).name != file or file.startswith("."):
            raise DamagedFile(f"{path}: names the file {file!r}, expected one beside it")
        if not (path.parent / file).is_file():
            raise DamagedFile(f"{path}: the file {file} that it names is not there")
    for file in files:
        is_pickle = path.name.startswith(PICKLE)
        shard = (_open_pickle if is_pickle else _open_safetensors)(path.parent / file)
        for name in shard:
            if index.get(name) != file:
                there = f"in {index[name]}" if name in index else "nowhere"
                raise DamagedFile(
                    f"{path.parent / file}: holds {name}, which the index has {there}"
                )
        opened[file] = shard
    for name, file in index.items():
        if name not in opened[file]:
            raise DamagedFile(f"{path}: {name} is not in {file}")
    shapes = {name: opened[file].shapes[name] for name, file in index.items()}
    return Weights(path, shapes, lambda name: opened[index[name]][name])


def _read_index(path: Path) -> dict[str, str]:
    if path.stat().st_size > _LONGEST_INDEX:
        raise DamagedFile(f"{path}: is longer than any index")
    try:
        index: Any = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(each, str) for pair in index.items() for each in pair):
            raise ValueError("its weight_map holds other things than names")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"{path}: is no index of tensors: {error}") from None
    return index  # type: ignore[no-any-return]


def seal(tensors: Mapping[str, Tensor], config: dict[str, Any]) -> dict[str, str]:
    """Return the metadata of a file of these tensors: a digest of what they hold, and the config of their model."""
    digest = _combined(_digest(name, tensors[name]) for name in sorted(tensors))
    return {"format": "pt", DIGEST: digest, CONFIG: json.dumps(config)}


def _digest(name: str, tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
    if tensor.numel():
        flat = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


def _combined(digests: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()
