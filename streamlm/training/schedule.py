"""The learning-rate schedule."""

import math

from streamlm.training.config import TrainConfig


def scheduled_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step: linear warm-up, then cosine decay to min_learning_rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    span = max(1, config.steps - config.warmup_steps)
    share = min(1.0, (step - config.warmup_steps) / span)
    low, high = config.min_learning_rate, config.learning_rate
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * share))
