"""One safetensors file that knows its own SHA-256: no byte of it can change unnoticed."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from adder.errors import DamagedFile, UsageError
from adder.files import replace_file

_UNSEALED = b"0" * 64
_KEY = "adder"
_SEAL = re.compile(
    rb'^.{8}\{"__metadata__":\{"adder":"\{\\"sha256\\": \\"([0-9a-f]{64})\\"', re.DOTALL
)
_LENGTH_BYTES = 8


def save_sealed(path: str | Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and JSON facts as one file, which appears whole or not at all.

    The header's `sha256` is that of the file with 64 zeros in its place, so it covers every byte.

    Raises:
        UsageError: `path` is a folder or a device.
        OSError: the disk is full, the folder is missing or read-only.
    """
    # One key, and the seal first in it: safetensors writes several keys in any order.
    metadata = {_KEY: json.dumps({"sha256": _UNSEALED.decode(), "facts": facts})}
    content = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata
    )
    seal = _SEAL.match(content)
    if seal is None:
        raise AssertionError("safetensors wrote a header that holds no seal")
    digest = hashlib.sha256(content).hexdigest().encode()
    _replace(Path(path), content[: seal.start(1)] + digest + content[seal.end(1) :])


def load_sealed(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_sealed` wrote.

    Raises:
        DamagedFile: a byte was changed, the file was cut, or it is of another kind.
        OSError: the file cannot be read.
    """
    content = Path(path).read_bytes()
    seal = _SEAL.match(content)
    if seal is None:
        raise DamagedFile(f"{path}: not a file that adder sealed, or its header is damaged")
    unsealed = content[: seal.start(1)] + _UNSEALED + content[seal.end(1) :]
    if hashlib.sha256(unsealed).hexdigest().encode() != seal.group(1):
        raise DamagedFile(f"{path}: damaged: its content does not match its SHA-256")
    try:
        tensors = safetensors.torch.load(content)
        facts = dict(json.loads(_header(content)["__metadata__"][_KEY])["facts"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path}: sealed, but not by adder: {error}") from error
    return tensors, facts


def _header(content: bytes) -> Any:
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    return json.loads(content[_LENGTH_BYTES:end])


def _replace(path: Path, content: bytes) -> None:
    """Write to a temporary name beside `path`, then rename. Errors name `path`."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is a folder or a device: give the name of a file")
    path = path.resolve()
    try:
        replace_file(path, content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
