"""Lexical search over token ids: the passages of a stream that share the rare tokens of a query.

BM25 (Robertson & Zaragoza 2009) with passages of one length. Token frequencies are counted in
blocks of that length; the scores are those of windows that begin at any token, so that no passage
is cut in two. The stream is read twice, in chunks, in bounded memory.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Chunks = Callable[[], Iterator[np.ndarray]]
SATURATION = 1.2  # k1: how soon further occurrences of a token count less


@dataclass(frozen=True)
class Passage:
    """A passage of a stream: tokens start ≤ i < stop, and how well they match, above 0."""

    start: int
    stop: int
    score: float


@dataclass(frozen=True)
class Terms:
    """The different tokens of a query, and how rare each is in a stream.

    Attributes:
        ids: ascending.
        weights: inverse document frequency in nats; 0 for tokens that the stream does not have.
        n_blocks: passages that the stream has.
    """

    ids: np.ndarray
    weights: np.ndarray
    n_blocks: int

    @classmethod
    def of(cls, query: np.ndarray, chunks: Chunks, *, span: int) -> "Terms":
        """Count in how many blocks of `span` tokens each token of the query occurs."""
        terms = np.unique(query)
        n_blocks, frequency = 0, np.zeros(len(terms))
        for ids in chunks():
            blocks = np.full((-(-len(ids) // span), span), -1)
            blocks.reshape(-1)[: len(ids)] = ids
            frequency += [(blocks == term).any(axis=1).sum() for term in terms]
            n_blocks += len(blocks)
        weights = np.log1p((n_blocks - frequency + 0.5) / (frequency + 0.5))
        return cls(terms, np.where(frequency > 0, weights, 0.0), n_blocks)

    def surprise(self, ids: np.ndarray) -> float:
        """Nats by which what a passage has of the query is rarer than one passage of the stream.

        Below 0, some passage would have as much of it by chance, if tokens were independent.
        """
        matched = float(self.weights[np.isin(self.ids, ids)].sum())
        return matched - float(np.log(max(self.n_blocks, 1)))

    def share(self, ids: np.ndarray) -> float:
        """The share of the query's weight that a passage has, 0 to 1."""
        total = float(self.weights.sum())
        return float(self.weights[np.isin(self.ids, ids)].sum()) / total if total else 0.0


def search(query: np.ndarray, chunks: Chunks, *, k: int, span: int) -> list[Passage]:
    """The k best passages that do not overlap, best first; fewer if fewer match.

    Args:
        query: ids. Each counts once.
        chunks: iterates over the ids of the stream in order; called twice. Blocks, in which tokens
            are counted, begin anew with every chunk.
        span: tokens of a passage.
    """
    return best_passages(Terms.of(query, chunks, span=span), chunks, k=k, span=span)


def best_passages(terms: Terms, chunks: Chunks, *, k: int, span: int) -> list[Passage]:
    """`search` for terms that were counted."""
    found: list[Passage] = []
    start, held = 0, np.zeros(0, np.int64)
    for ids in chunks():
        held = np.concatenate([held, ids])  # windows begin in the last chunk and end in this one
        found = _best([*found, *_windows(held, start, terms, k=k, span=span)], k)
        start += max(0, len(held) - (span - 1))
        held = held[max(0, len(held) - (span - 1)) :]
    return found


def _windows(ids: np.ndarray, start: int, terms: Terms, *, k: int, span: int) -> Iterator[Passage]:
    """The best windows of consecutive ids, which begin at `start`."""
    n = max(1, len(ids) - span + 1)
    score = np.zeros(n)
    for term, rarity in zip(terms.ids, terms.weights, strict=True):
        seen = np.concatenate([[0], np.cumsum(ids == term)])
        stop = np.minimum(np.arange(n) + span, len(ids))
        count = seen[stop] - seen[:n]
        score += rarity * count * (SATURATION + 1) / (count + SATURATION)
    for _ in range(k):
        best = _middle(score)
        if score[best] <= 0:
            return
        yield Passage(start + best, start + min(best + span, len(ids)), float(score[best]))
        score[max(0, best - span + 1) : best + span] = 0


def _middle(score: np.ndarray) -> int:
    """The middle of the first run of windows with the highest score: the matches are inside it."""
    first = int(score.argmax())
    after = np.flatnonzero(score[first:] < score[first])
    return first + (int(after[0]) if len(after) else len(score) - first) // 2


def _best(passages: Sequence[Passage], k: int) -> list[Passage]:
    """The k best passages that do not overlap; of two that do, the better one."""
    kept: list[Passage] = []
    for each in sorted(passages, key=lambda passage: (-passage.score, passage.start)):
        if all(each.stop <= other.start or other.stop <= each.start for other in kept):
            kept.append(each)
    return kept[:k]
