"""Every implementation of every operator, from one list, and outputs that begin as NaN."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside this file

from implementations import Implementation, names, poison, serving


@pytest.fixture(params=names())
def implementation(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    """The reference, the portable implementation, and the C++ kernels with each instruction set."""
    with serving(request.param):
        yield Implementation(request.param)


@pytest.fixture(params=[name for name in names() if name != "reference"])
def served(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    """Every implementation except the reference."""
    with serving(request.param):
        yield Implementation(request.param)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what torch.empty and its kin return with NaN, so that an output left unwritten is seen."""
    poison(monkeypatch)
