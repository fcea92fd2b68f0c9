"""The learning rate of every step."""

import math

from adder.training.config import Settings


def learning_rate(step: int, config: Settings) -> float:
    """Linear warm-up, then half a cosine down to the minimum at the last step.

    Args:
        step: counted from 0; step 0 already learns, the minimum is reached at `config.steps`.
    """
    high, low = config.learning_rate, config.minimum_learning_rate
    if step < config.warmup:
        return high * (step + 1) / (config.warmup + 1)
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return low + (high - low) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
