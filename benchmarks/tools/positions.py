"""Loss by position in the book, and differences between ways of reading, with intervals.

Books are the independent draws: intervals come from drawing books with replacement (percentile
bootstrap). Differences are paired: the same tokens, read in two ways.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 4000
ENOUGH = 5  # books that a bin needs for an interval


@dataclass(frozen=True)
class Bins:
    """Sums per book and bin of positions: nats and tokens [books, bins]; edges [bins + 1]."""

    edges: np.ndarray
    nats: np.ndarray
    tokens: np.ndarray

    @classmethod
    def of(cls, losses: Sequence[np.ndarray], edges: Sequence[int]) -> "Bins":
        """Args: losses: of every token, per book; edges: rising positions, the first is 0."""
        nats = np.zeros((len(losses), len(edges) - 1))
        tokens = np.zeros(nats.shape, dtype=np.int64)
        for row, book in enumerate(losses):
            sums = np.concatenate([[0.0], np.cumsum(book, dtype=np.float64)])
            cuts = np.minimum(edges, len(book))
            nats[row], tokens[row] = np.diff(sums[cuts]), np.diff(cuts)
        return cls(np.asarray(edges), nats, tokens)

    @property
    def mean(self) -> np.ndarray:
        """Nats per token of each bin, all books together; NaN where a bin has no tokens."""
        return _ratio(self.nats.sum(0), self.tokens.sum(0))

    @property
    def books(self) -> np.ndarray:
        """Books that reach into each bin."""
        return np.asarray((self.tokens > 0).sum(0))


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.where(bottom > 0, top / np.maximum(bottom, 1), np.nan)
    return result


def log_edges(longest: int) -> list[int]:
    """0, 1, 2, 4, … up to the longest book."""
    edges = [0, 1]
    while edges[-1] < longest:
        edges.append(2 * edges[-1])
    return edges


def linear_edges(longest: int, step: int, bins: int) -> list[int]:
    """`bins` bins of `step` tokens at most, from the beginning of a book."""
    return list(range(0, min(bins * step, longest) + 1, step))


def _draw(books: int, seed: int) -> np.ndarray:
    """How often each book is drawn, [DRAWS, books]."""
    random = np.random.default_rng(seed)
    return random.multinomial(books, np.full(books, 1 / books), size=DRAWS)


def interval(top: np.ndarray, bottom: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """95 % interval of Σ top / Σ bottom over books: [books, bins] twice → [2, bins]."""
    times = _draw(len(top), seed)
    drawn = _ratio(times @ top, times @ bottom)
    bounds: np.ndarray = np.full((2, top.shape[1]), np.nan)
    enough = (bottom > 0).sum(0) >= ENOUGH
    if enough.any():
        bounds[:, enough] = np.nanquantile(drawn[:, enough], [0.025, 0.975], axis=0)
    return bounds


def compared(name: str, this: Bins, other: Bins) -> list[dict[str, Any]]:
    """`this` minus `other` in each bin, nats per token: below 0 means that `this` reads better."""
    top = this.nats - other.nats
    difference = _ratio(top.sum(0), this.tokens.sum(0))
    low, high = interval(top, this.tokens)
    rows = []
    for i in range(len(difference)):
        if not this.books[i]:
            continue
        rows.append(
            {
                "comparison": name,
                "from": int(this.edges[i]),
                "to": int(this.edges[i + 1]),
                "tokens": int(this.tokens[:, i].sum()),
                "books": int(this.books[i]),
                "difference": float(difference[i]),
                "low": None if np.isnan(low[i]) else float(low[i]),
                "high": None if np.isnan(high[i]) else float(high[i]),
                "books_better": int((top[:, i] < 0).sum()),
            }
        )
    return rows


def curve(bins: Bins) -> dict[str, Any]:
    """Means and their intervals, for the result file and the picture."""
    low, high = interval(bins.nats, bins.tokens)
    shown = bins.books > 0
    return {
        "from": bins.edges[:-1][shown].tolist(),
        "to": bins.edges[1:][shown].tolist(),
        "nats": bins.mean[shown].tolist(),
        "low": [None if np.isnan(x) else float(x) for x in low[shown]],
        "high": [None if np.isnan(x) else float(x) for x in high[shown]],
        "books": bins.books[shown].tolist(),
        "tokens": bins.tokens.sum(0)[shown].tolist(),
    }
