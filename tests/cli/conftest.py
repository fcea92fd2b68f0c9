"""Runs and sources that several commands are tried on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adder.cli.main import main

from ..data.sources import tones, write_files, write_images, write_series

SMALL = ["--d-model=8", "--n-layer=1", "--d-state=4", "--batch-size=4", "--device=cpu"]
QUICK = [*SMALL, "--steps=30", "--learning-rate=2e-2", "--evaluate-every=30", "--validation=0.25"]


@pytest.fixture(scope="session")
def sounds(tmp_path_factory) -> Path:
    return write_files(tmp_path_factory.mktemp("sounds"), tones(10))


@pytest.fixture(scope="session")
def series(tmp_path_factory) -> Path:
    return write_series(tmp_path_factory.mktemp("series") / "x.npz")


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def _trained(source: Path, output: Path, *options: str) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["train", str(source), "-o", str(output), *QUICK, *options]) == 0
    torch.set_num_threads(threads)
    return output


@pytest.fixture(scope="session")
def sound_run(tmp_path_factory, sounds) -> Path:
    """An S4D that tells low tones from high ones; the files of index 3 and 4 are for testing."""
    output = tmp_path_factory.mktemp("runs") / "sounds"
    enough = ["--steps=100", "--d-model=16", "--d-state=8", "--dropout=0", "--evaluate-every=100"]
    return _trained(sounds, output, "--test-files=*_[34].wav", *enough)


@pytest.fixture(scope="session")
def series_run(tmp_path_factory, series) -> Path:
    """A Mamba that tells rising series of two channels from falling ones."""
    return _trained(series, tmp_path_factory.mktemp("runs") / "series", "--model=mamba")


@pytest.fixture(scope="session")
def text_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("the quick brown fox\n" * 20, encoding="utf-8")
    sizes = [*SMALL, "--length=16", "--steps=2"]
    assert main(["train", str(folder / "text.txt"), "-o", str(folder / "run"), *sizes]) == 0
    return folder / "run"


@pytest.fixture
def as_json(capsys) -> Callable[..., dict]:
    """as_json(command, *arguments): what it prints with --json."""

    def run(*arguments: object) -> dict:
        capsys.readouterr()
        assert main([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def line_of(capsys) -> Callable[..., str]:
    """line_of(code, command, *arguments): the one line on standard error of one that fails."""

    def run(code: int, *arguments: object) -> str:
        capsys.readouterr()
        assert main([*map(str, arguments)]) == code
        streams = capsys.readouterr()
        lines = streams.err.strip().splitlines()
        assert streams.out == ""
        assert len(lines) == 1, lines
        return lines[0]

    return run
