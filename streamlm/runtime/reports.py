"""What reading and writing tell: how much, how fast, how likely it was, and what else was."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np


@dataclass
class ReadReport:
    """Sums over the tokens read by one call.

    Attributes:
        tokens, n_bytes: tokens read and the UTF-8 bytes they stand for.
        nats: negative log-likelihood of the `scored_bytes` among them, given everything before.
        seconds: wall time; position: tokens of the whole stream afterwards.
        skipped_bytes: bytes that an earlier, interrupted call had read already.
        ids, log_probs: per token, only where they were asked for.
    """

    tokens: int = 0
    n_bytes: int = 0
    nats: float = 0.0
    scored_bytes: int = 0
    seconds: float = 0.0
    position: int = 0
    skipped_bytes: int = 0
    ids: list[int] = field(default_factory=list, repr=False)
    log_probs: list[float] = field(default_factory=list, repr=False)

    @property
    def bits_per_byte(self) -> float | None:
        """Bits of information per byte of text; None when nothing was scored."""
        return self.nats / math.log(2) / self.scored_bytes if self.scored_bytes else None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def add(
        self, ids: np.ndarray, log_probs: np.ndarray | None, n_bytes: int, *, keep: bool
    ) -> None:
        self.tokens += len(ids)
        self.n_bytes += n_bytes
        if log_probs is None:
            return
        self.scored_bytes += n_bytes
        self.nats -= float(log_probs.sum(dtype=np.float64))
        if keep:
            self.ids += ids.tolist()
            self.log_probs += log_probs.tolist()

    def to_dict(self) -> dict[str, Any]:
        """For `--json`; per-token lists only where they were kept."""
        values: dict[str, Any] = {
            "tokens": self.tokens,
            "bytes": self.n_bytes,
            "nats": self.nats if self.scored_bytes else None,
            "bits_per_byte": self.bits_per_byte,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "position": self.position,
            "skipped_bytes": self.skipped_bytes,
        }
        if self.ids:
            values |= {"ids": self.ids, "log_probs": self.log_probs}
        return values


@dataclass(frozen=True)
class Choice:
    """One token that was written, and what might have stood there.

    Probabilities are the model's own, before temperature and filters; tokens that are never written
    have none.

    Attributes:
        id: the token; text: the characters that it completes, "" within a character.
        probability: what the model gave it.
        others: the likeliest tokens and their probabilities, likeliest first; the chosen one may be
            among them. Half a character is U+FFFD.
    """

    id: int
    text: str
    probability: float
    others: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far a call has come: bytes of the current source (`size` None when unknown), and sums."""

    name: str
    read: int
    size: int | None
    report: ReadReport


ProgressCallback: TypeAlias = Callable[[Progress], None]
