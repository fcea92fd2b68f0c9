"""Sizes that match, and exponents of made data."""

import pytest

from adder.comparison.match import DEFAULT_LAYERS, match
from adder.comparison.results import exponent


@pytest.mark.parametrize("layer", DEFAULT_LAYERS)
def test_models_are_within_6_percent_of_mamba(layer):
    assert abs(match(layer, vocab_size=256).difference) < 0.06


@pytest.mark.parametrize("power", [0, 1, 2])
def test_the_exponent_of_made_data(power):
    lengths = [2**n for n in range(6, 12)]
    assert exponent(lengths, [3e-6 * n**power for n in lengths]) == pytest.approx(power, abs=1e-9)
