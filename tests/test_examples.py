"""The examples run, and show what they say they show."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from adder.cli.main import main

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run_here() -> None:
    tested = {"train_on_a_string", "continue_a_text", "mamba_layer"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


def test_a_model_trained_on_a_string_writes_it() -> None:
    assert example("train_on_a_string").main() == "she sells sea shells by the sea shore. "


def test_a_mamba_layer_learns_to_recall() -> None:
    before, after = example("mamba_layer").main(steps=250, length=16)
    assert after < before / 5


def test_a_text_is_continued_from_its_state(tmp_path: Path) -> None:
    source, run, state = (tmp_path / name for name in ("source.txt", "run", "state"))
    source.write_text("the snake adds, the adder hisses. " * 20, encoding="utf-8")
    sizes = ["--d-model", "16", "--n-layer", "1", "--batch-size", "2", "--length", "16"]
    assert main(["train", str(source), "-o", str(run), "--steps", "1", *sizes]) == 0
    continue_a_text = example("continue_a_text")
    first = continue_a_text.main(str(run), "the adder", str(state), tokens=12)
    assert first.startswith("[21 tokens read;")
    second = continue_a_text.main(str(run), "", str(state), tokens=10)
    assert second.startswith("[31 tokens read;")
