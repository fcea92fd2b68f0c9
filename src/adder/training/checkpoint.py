"""Checkpoints of a run: two safetensors files and a manifest that knows every byte of them.

A checkpoint is a folder RUN/checkpoints/step-00000200. It is written under another name and
renamed, so it is whole or absent. Reading checks the size and the SHA-256 of every file, of the
run's config.json and vocabulary.json (where it has one), and of the manifest itself, before a byte is interpreted.
"""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from adder.errors import AdderError, DamagedFile
from adder.files import flush_folder, json_bytes, parse_json, sha256, write_file

FORMAT = 1
CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
MODEL = "model.safetensors"
TRAINING = "training.safetensors"
RUN_FILES = ("config.json", "vocabulary.json")

_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a training run.

    Args:
        step: how many updates were made.
        settings: the TrainingConfig in force, as a dict.
        model: the model's tensors by name.
        training: optimiser moments, random generators and the carried state, by name.
    """

    step: int
    settings: dict[str, Any]
    model: dict[str, Tensor]
    training: dict[str, Tensor]


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def checkpoint_step(folder: Path) -> int:
    """The step in a checkpoint's name, -1 for any other name."""
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else -1


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first; unfinished ones are not among them."""
    folder = run / CHECKPOINTS
    found = folder.iterdir() if folder.is_dir() else iter(())
    return sorted((f for f in found if checkpoint_step(f) >= 0), key=checkpoint_step)


def write_checkpoint(
    run: Path, checkpoint: Checkpoint, run_files: tuple[str, ...] = RUN_FILES
) -> Path:
    """Add a checkpoint to a run; OSError, with nothing left behind, where the disk refuses.

    Args:
        run_files: the files of the run that the checkpoint belongs to, of RUN_FILES.
    """
    name = checkpoint_name(checkpoint.step)
    final = run / CHECKPOINTS / name
    temporary = final.with_name(f".{name}.new")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        contents = {
            MODEL: safetensors.torch.save(checkpoint.model),
            TRAINING: safetensors.torch.save(checkpoint.training),
        }
        for file, data in contents.items():
            write_file(temporary / file, data)
        contents |= {file: (run / file).read_bytes() for file in run_files}
        manifest = {
            "format": FORMAT,
            "step": checkpoint.step,
            "training": checkpoint.settings,
            "files": {f: {"size": len(d), "sha256": sha256(d)} for f, d in contents.items()},
        }
        write_file(temporary / MANIFEST, _sealed(manifest))
        flush_folder(temporary)
        if final.exists():
            _remove(final)
        temporary.rename(final)
        flush_folder(final.parent)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint and check every byte of it; DamagedFile names the file at fault."""
    run = folder.parent.parent
    manifest = _read_manifest(folder / MANIFEST)
    for file in RUN_FILES:
        if file in manifest["files"]:
            _read_checked(run / file, manifest["files"][file])
        elif (run / file).exists():
            raise DamagedFile(f"{run / file} does not belong to this run")
    model = _tensors(folder / MODEL, manifest["files"][MODEL])
    training = _tensors(folder / TRAINING, manifest["files"][TRAINING])
    return Checkpoint(manifest["step"], manifest["training"], model, training)


def newest_good(folders: Iterable[Path]) -> Path | None:
    """The last of these checkpoints that reads well."""
    for folder in sorted(folders, key=checkpoint_step, reverse=True):
        try:
            read_checkpoint(folder)
        except AdderError:
            continue
        return folder
    return None


def prune_checkpoints(run: Path, keep: int) -> None:
    """Remove all but the newest checkpoints, and what a killed process left unfinished."""
    for folder in list_checkpoints(run)[:-keep]:
        _remove(folder)
    for folder in (run / CHECKPOINTS).glob(".step-*"):
        shutil.rmtree(folder, ignore_errors=True)


def remove_checkpoints_after(run: Path, step: int) -> None:
    """Remove the checkpoints that a run which continues from `step` will write anew."""
    for folder in list_checkpoints(run):
        if checkpoint_step(folder) > step:
            _remove(folder)


def _remove(folder: Path) -> None:
    # Renamed first: a process killed half-way leaves no checkpoint that lacks files.
    doomed = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sealed(manifest: dict[str, Any]) -> bytes:
    return json_bytes({**manifest, "sha256": sha256(json_bytes(manifest))})


def _read_manifest(path: Path) -> dict[str, Any]:
    data = _read(path)
    manifest = parse_json(data, path)
    if manifest.get("format", FORMAT) != FORMAT and "sha256" in manifest:
        raise DamagedFile(f"{path} has a format that this version of adder does not know")
    manifest.pop("sha256", None)
    if _sealed(manifest) != data:
        raise DamagedFile(f"{path} is damaged: its bytes differ from what adder wrote")
    return manifest


def _tensors(path: Path, expected: dict[str, Any]) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(_read_checked(path, expected))
    except safetensors.SafetensorError as error:
        raise DamagedFile(f"{path} is damaged: {error}") from None
    return tensors


def _read_checked(path: Path, expected: dict[str, Any]) -> bytes:
    data = _read(path)
    if len(data) != expected["size"]:
        raise DamagedFile(f"{path} is damaged: {len(data)} bytes instead of {expected['size']}")
    if sha256(data) != expected["sha256"]:
        raise DamagedFile(f"{path} is damaged: its bytes differ from what adder wrote")
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DamagedFile(f"{path} is missing") from None
    except OSError as error:
        raise AdderError(f"cannot read {path}: {error.strerror or error}") from None
