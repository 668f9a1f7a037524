"""Training steps: the report of one, and a step that is still queued on the device."""

import math
import time
from dataclasses import dataclass

from streamlm.transfer import Fetch


@dataclass(frozen=True)
class Step:
    """What one optimiser step reports.

    Attributes:
        loss: the language model's, in nats per token.
        compression_loss: and what else the head adds to it (`Model.segment_loss`). The first is
            the mean by `losses.compression_weight`, the other that of all segments.
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
        """Start the clock again, without counting the time since the last step."""
        self._last = time.perf_counter()

    def after(self, n_tokens: int) -> float:
        """The pace after n more tokens; 0 before the first token."""
        now = time.perf_counter()
        speed = n_tokens / (now - self._last)
        self._rate = speed if not self._rate else 0.95 * self._rate + 0.05 * speed
        self._last = now
        return self._rate


@dataclass(frozen=True)
class BegunStep:
    """A step that was queued on the device and may not have run yet.

    Attributes:
        sums: [5] nats; the head's loss; the compression loss times its weight, and that weight; the
            norm of the gradient.
        n_tokens, n_bytes: targets of this step; tokens: of all up to it.
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
            # Nothing can be told before the first target was met.
            seconds_left=left / rate if rate else 0.0,
        )
