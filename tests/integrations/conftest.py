"""Helpers beside the tests and those of the operators, and a process that is left unpatched."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adder.integrations.transformers import unpatch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "ops")]


@pytest.fixture
def unpatched() -> Iterator[None]:
    """Put transformers back as it was, whatever a test did."""
    yield
    unpatch()
