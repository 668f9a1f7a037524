"""Training steps: reports, and steps that are queued on the device."""

import math
import time
from dataclasses import dataclass

from streamlm.transfer import Fetch


@dataclass(frozen=True)
class Step:
    """The report of one optimiser step.

    Attributes:
        loss: of the language model, in nats per token.
        compression_loss: the weighted mean over commits of `Model.auxiliary_loss`, plus the mean
            over segments of `Model.segment_loss`.
        seconds_left: estimate for the rest of the run; 0 before the first target.
    """

    step: int
    loss: float
    bits_per_byte: float
    compression_loss: float
    gradient_norm: float
    learning_rate: float
    tokens_per_second: float
    tokens: int
    seconds_left: float
    valid_bits_per_byte: float | None = None


class Pace:
    """Tokens per second, smoothed over the steps."""

    def __init__(self) -> None:
        self._rate = 0.0
        self.restart()

    def restart(self) -> None:
        """Restart the clock, so that the time since the last step does not count."""
        self._last = time.perf_counter()

    def after(self, n_tokens: int) -> float:
        """Tokens per second after n more tokens; 0 before the first token."""
        now = time.perf_counter()
        speed = n_tokens / (now - self._last)
        self._rate = speed if not self._rate else 0.95 * self._rate + 0.05 * speed
        self._last = now
        return self._rate


@dataclass(frozen=True)
class BegunStep:
    """A step that is queued on the device and may not have run yet.

    Attributes:
        sums: [5] nats; the head's loss; the compression loss times its weight; that weight; the
            gradient norm.
        n_tokens, n_bytes: of this step's targets; tokens: of all targets so far.
    """

    step: int
    sums: Fetch
    learning_rate: float
    n_tokens: int
    n_bytes: int
    tokens: int

    def report(self, pace: Pace, *, of: int) -> Step:
        """The step's report; waits until the device has run it.

        Args:
            of: steps of the whole run.
        """
        nats, added, compression, weight, norm = self.sums.get().tolist()
        rate = pace.after(self.n_tokens)
        left = (of - self.step) * self.tokens / self.step
        return Step(
            step=self.step,
            loss=nats / max(self.n_tokens, 1),
            bits_per_byte=nats / math.log(2) / max(self.n_bytes, 1),
            compression_loss=added + compression / max(weight, 1),
            gradient_norm=norm,
            learning_rate=self.learning_rate,
            tokens_per_second=rate,
            tokens=self.tokens,
            seconds_left=left / rate if rate else 0.0,
        )
