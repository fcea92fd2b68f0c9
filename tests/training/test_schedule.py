import pytest

from adder.training.config import TrainingConfig
from adder.training.schedule import learning_rate

CONFIG = TrainingConfig(steps=100, warmup=10, learning_rate=1.0, minimum_learning_rate=0.1)


def test_rises_to_the_highest_at_the_end_of_the_warmup():
    rates = [learning_rate(step, CONFIG) for step in range(11)]
    assert rates == sorted(rates)
    assert rates[0] > 0
    assert rates[10] == 1.0


def test_falls_along_a_cosine_to_the_minimum():
    rates = [learning_rate(step, CONFIG) for step in range(10, 101)]
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(55, CONFIG) == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1)
    assert learning_rate(1000, CONFIG) == pytest.approx(0.1)


def test_a_warmup_longer_than_the_run_only_rises():
    config = TrainingConfig(steps=5, warmup=10, learning_rate=1.0, minimum_learning_rate=0.1)
    assert learning_rate(4, config) == pytest.approx(5 / 11)
    assert TrainingConfig(steps=5, warmup=5).warmup == 5
    assert learning_rate(5, TrainingConfig(steps=5, warmup=5)) == 3e-3
