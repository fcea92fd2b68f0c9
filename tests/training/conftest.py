"""A run small enough to be trained in every test."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from adder.training.config import TrainingConfig
from adder.training.loop import Outcome, fit
from adder.training.progress import Silent
from adder.training.session import Session, resume_run, start_run

CPU = torch.device("cpu")
SMALL_MODEL = {"d_model": 16, "n_layer": 2, "d_state": 4}
SMALL_TRAINING = {
    "steps": 6,
    "batch_size": 2,
    "length": 16,
    "warmup": 2,
    "evaluate_every": 3,
    "evaluation_tokens": 50,
    "save_every": 2,
}

Start = Callable[..., AbstractContextManager[Session]]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "source.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 20, encoding="utf-8")
    return str(path)


@pytest.fixture
def start(source: str) -> Start:
    """start(output, **settings) makes a run of the small source."""

    def make(output: Path, **settings) -> AbstractContextManager[Session]:
        return start_run(
            output,
            source=source,
            vocabulary="characters",
            model=SMALL_MODEL,
            training=TrainingConfig(**{**SMALL_TRAINING, **settings}),
            device=CPU,
        )

    return make


@pytest.fixture
def train(start: Start) -> Callable[..., Outcome]:
    """train(output, **settings) makes a run and trains it to its end."""

    def make(output: Path, **settings) -> Outcome:
        with start(output, **settings) as session:
            return fit(session, Silent())

    return make


@pytest.fixture
def resume() -> Callable[..., Outcome]:
    """resume(path, **changes) continues a run to its end."""

    def make(path: Path, **changes) -> Outcome:
        with resume_run(path, changes=changes, device=CPU) as session:
            return fit(session, Silent())

    return make
