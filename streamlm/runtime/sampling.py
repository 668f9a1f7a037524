"""Sampling: how the next token is drawn, and where generated text stops. No model."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from streamlm.config import check_whole

SHORT_LIST = 512  # tokens ranked before a full sort is tried
ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn. The steps apply in the order of the attributes.

    Attributes:
        repetition_penalty: divides positive and multiplies negative logits of recent tokens
            (Keskar et al. 2019); 1 is off.
        temperature: divides the logits; 0 is greedy.
        top_k: keep the k likeliest tokens; 0 is off.
        top_p: keep the smallest set of likeliest tokens with this total probability; 1 is off.
        min_p: keep tokens with at least this fraction of the highest probability; 0 is off.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0

    def __post_init__(self) -> None:
        limits = (
            ("repetition_penalty", 0 < self.repetition_penalty <= 100, "above 0, at most 100"),
            ("temperature", 0 <= self.temperature <= 100, "0 (greedy) to 100"),
            ("top_k", self.top_k >= 0 and self.top_k % 1 == 0, "a whole number, 0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1 (off)"),
            ("min_p", 0 <= self.min_p <= 1, "0 (off) to 1"),
        )
        for name, good, allowed in limits:
            if not good:
                raise ValueError(f"{name} = {getattr(self, name)!r}; allowed: {allowed}")

    def probabilities(self, logits: Tensor, recent: np.ndarray) -> Tensor:
        """The distribution that a token is drawn from: [V] logits → [V] float64 on the CPU."""
        logits = logits.detach().cpu().double()  # widened on the host: half the bytes to copy
        if self.repetition_penalty != 1 and len(recent):
            seen = torch.from_numpy(np.unique(recent).astype(np.int64))
            penalty, found = self.repetition_penalty, logits[seen]
            logits = logits.clone()
            logits[seen] = torch.where(found > 0, found / penalty, found * penalty)
        if self.temperature == 0:
            greedy = torch.zeros_like(logits)
            greedy[logits.argmax()] = 1.0
            return greedy
        # Subtracting the maximum first keeps a tiny temperature from overflowing.
        shares = ((logits - logits.max()) / self.temperature).softmax(0)
        limit = min(int(self.top_k) or len(shares), len(shares))
        # The nucleus is nearly always small, and ranking a few hundred is far cheaper than sorting.
        ranked, order = shares.topk(min(limit, SHORT_LIST))
        if limit > len(ranked) and (self.top_k or float(ranked.sum()) <= self.top_p):
            ranked, order = shares.topk(limit)
        mass = ranked.sum() if self.top_k else 1.0  # top_p applies to what top_k keeps
        before = ranked.cumsum(0) - ranked
        kept = (before < self.top_p * mass) & (ranked >= self.min_p * ranked[0])
        kept[0] = True
        result = torch.zeros_like(shares)
        result[order[kept]] = ranked[kept] / ranked[kept].sum()
        return result


def sample(
    logits: Tensor, sampling: Sampling, *, random: np.random.Generator, recent: np.ndarray
) -> int:
    """Draw one token.

    The random number is drawn on the CPU in float64, so that the same generator gives the same
    token on any device that agrees on the logits.

    Args:
        logits: [V].
        recent: ids for the repetition penalty.
    """
    return draw(sampling.probabilities(logits, recent), random)


def draw(probabilities: Tensor, random: np.random.Generator) -> int:
    """Draw from a distribution that need not be normalized: [V] float64, on the CPU."""
    cumulative = probabilities.cumsum(0).numpy()
    drawn = random.random() * cumulative[-1]
    index = int(np.searchsorted(cumulative, drawn, side="right"))
    # Rounding may push the draw past the end: take the last token with any probability.
    return min(index, int(np.searchsorted(cumulative, cumulative[-1], side="left")))


class Stops:
    """Passes text through until a stop string; holds back an end that may begin one.

    Args:
        stops: strings that end the text; the earliest match counts.

    Attributes:
        held: text that was pushed and is held back.
    """

    def __init__(self, stops: list[str]) -> None:
        self._stops = stops
        self.held = ""

    @classmethod
    def at(cls, stop: str | Iterable[str]) -> Self:
        """Stop at one string or at several.

        Raises:
            ValueError: one of them is empty.
        """
        stops = [stop] if isinstance(stop, str) else list(stop)
        if not all(isinstance(text, str) and text for text in stops):
            raise ValueError(f"stop = {stop!r}; allowed: strings that are not empty")
        return cls(stops)

    def push(self, text: str) -> tuple[str, bool]:
        """Add a piece; return the text that is ready, and whether a stop string was found."""
        held = self.held + text
        found = min((at for stop in self._stops if (at := held.find(stop)) >= 0), default=-1)
        ready = found if found >= 0 else len(held) - self._could_begin(held)
        self.held = "" if found >= 0 else held[ready:]
        return held[:ready], found >= 0

    def until(self, pieces: Iterable[str]) -> Iterator[str]:
        """The pieces up to the first stop string, without empty ones."""
        for piece in pieces:
            ready, found = self.push(piece)
            if ready:
                yield ready
            if found:
                return
        if self.held:
            yield self.held

    def _could_begin(self, text: str) -> int:
        """Length of the longest suffix of `text` that is a prefix of a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for n in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self._stops):
                return n
        return 0


def check_request(max_tokens: int, seed: int | None) -> None:
    """Raise ValueError, with what is allowed, unless a call to generate may have these values."""
    check_whole("max_tokens", max_tokens)
    if seed is not None:
        check_whole("seed", seed, most=2**64 - 1)


def unescaped(text: str) -> str:
    r"""Replace the escapes \n, \r, \t and \\ by the characters they denote."""
    return re.sub(r"\\([nrt\\])", lambda found: ESCAPED[found[1]], text)
