"""A trainer that works until a given time: its learning rate follows the clock, not the steps."""

import math
import time

from streamlm.training.config import TrainConfig
from streamlm.training.trainer import Trainer

NEVER = 1 << 30


def clock_rate(config: TrainConfig, step: int, share: float) -> float:
    """Linear warm-up by steps; a cosine from learning_rate to min_learning_rate by time.

    Args:
        share: of the time that has passed; from 1 on the rate stays at its lowest.
    """
    low, high = config.min_learning_rate, config.learning_rate
    rate = low + 0.5 * (high - low) * (1 + math.cos(math.pi * min(1.0, share)))
    return rate * min(1.0, (step + 1) / max(1, config.warmup_steps))


class ClockTrainer(Trainer):
    """See the module's text. The clock runs once it is started; until then it stands at 0."""

    began = 0.0
    seconds = math.inf

    def start_clock(self, seconds: float) -> None:
        """From now on, `seconds` are left."""
        self.began, self.seconds = time.monotonic(), seconds

    def learning_rate(self, step: int) -> float:
        """See `clock_rate`."""
        return clock_rate(self.config, step, (time.monotonic() - self.began) / self.seconds)
