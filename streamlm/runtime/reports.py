"""Reports of reading, scoring and generating."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np


@dataclass
class ReadReport:
    """Sums over the tokens read by one call.

    Attributes:
        tokens, n_bytes: tokens read and the UTF-8 bytes they stand for.
        nats: negative log-likelihood of the scored tokens, given everything before them.
        scored_bytes: UTF-8 bytes of the scored tokens.
        seconds: wall time.
        position: tokens of the whole stream after the call.
        skipped_bytes: bytes that an interrupted call had read already.
        ids, logprobs: of each token, if requested; log-probabilities in nats.
    """

    tokens: int = 0
    n_bytes: int = 0
    nats: float = 0.0
    scored_bytes: int = 0
    seconds: float = 0.0
    position: int = 0
    skipped_bytes: int = 0
    ids: list[int] = field(default_factory=list, repr=False)
    logprobs: list[float] = field(default_factory=list, repr=False)

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of the scored text; None if nothing was scored."""
        return self.nats / math.log(2) / self.scored_bytes if self.scored_bytes else None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def add(
        self, ids: np.ndarray, logprobs: np.ndarray | None, n_bytes: int, *, keep: bool
    ) -> None:
        """Add tokens. Without `logprobs` they are not scored; `keep` appends to the lists.

        Raises:
            FloatingPointError: a log-probability is NaN or infinite.
        """
        if logprobs is not None and not np.isfinite(logprobs).all():
            raise FloatingPointError(
                "the model gives a probability that is no number: its weights hold NaN or "
                "infinity, or overflow in this precision"
            )
        self.tokens += len(ids)
        self.n_bytes += n_bytes
        if logprobs is None:
            return
        self.scored_bytes += n_bytes
        self.nats -= float(logprobs.sum(dtype=np.float64))
        if keep:
            self.ids += ids.tolist()
            self.logprobs += logprobs.tolist()

    def sums(self) -> "ReadReport":
        """A copy, without ids and log-probabilities."""
        return replace(self, ids=[], logprobs=[])

    def take(self) -> "ReadReport":
        """A copy, to which the ids and log-probabilities are moved."""
        taken = replace(self)
        self.ids, self.logprobs = [], []
        return taken

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON; the lists per token only if they were kept."""
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
            values |= {"ids": self.ids, "logprobs": self.logprobs}
        return values


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token, its log-probability, and the likeliest tokens at its position.

    Log-probabilities are the model's own, in nats: before temperature and filters, with suppressed
    tokens left out.

    Attributes:
        id: the token.
        text: the characters that it completes; "" within a character.
        logprob: its log-probability.
        top: text and log-probability of the likeliest tokens, likeliest first; the generated one
            may be among them. Part of a character is U+FFFD.
        top_ids: the ids of `top`.
    """

    id: int
    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    top_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Progress:
    """The progress of a call that reads sources.

    Attributes:
        name: of the current source.
        read: bytes read of it.
        size: its size in bytes, None if unknown.
        report: sums so far; it is updated in place.
    """

    name: str
    read: int
    size: int | None
    report: ReadReport


ProgressCallback: TypeAlias = Callable[[Progress], None]
