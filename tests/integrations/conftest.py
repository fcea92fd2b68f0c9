"""Helpers beside the tests, and a process that is left unpatched."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside this file

from adder.integrations.transformers import unpatch


@pytest.fixture
def unpatched() -> Iterator[None]:
    """Put transformers back as it was, whatever a test did."""
    yield
    unpatch()
