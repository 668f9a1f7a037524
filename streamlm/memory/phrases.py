"""Phrases in a stream of token ids: words, and words in a row, however the tokenizer spells them.

A word has other tokens behind a space than at the beginning of a line, and with a capital letter.
All its spellings are one term. Inside a longer word or number they do not count: 938 is not in
93812.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streamlm.memory.lexical import Chunks

OTHER, LETTER, DIGIT = range(3)  # kinds of characters
Phrase = Sequence[tuple[int, ...]]  # its spellings; each has one token or more


@dataclass(frozen=True)
class Edges:
    """The kinds of the first and of the last character of every token: [V] int8 each."""

    first: np.ndarray
    last: np.ndarray


def occurrences(phrases: Sequence[Phrase], chunks: Chunks, edges: Edges) -> Chunks:
    """A stream of the numbers of the phrases that begin at each token, in chunks; -1 elsewhere.

    Where several begin, the number is that of the first. The chunks are as many tokens as those
    given, cut elsewhere.
    """
    reach = max((len(ids) for phrase in phrases for ids in phrase), default=1)

    def read() -> Iterator[np.ndarray]:
        before, ahead = np.full(1, -1, np.int32), np.zeros(0, np.int32)
        for ids in chunks():
            ahead = np.concatenate([ahead, ids])
            n = max(0, len(ahead) - reach)
            if n:
                yield _begin(phrases, np.concatenate([before, ahead]), n, edges)
                before, ahead = ahead[n - 1 : n], ahead[n:]
        if len(ahead):
            padded = np.concatenate([before, ahead, np.full(reach, -1, np.int32)])
            yield _begin(phrases, padded, len(ahead), edges)

    return read


def share_within(ids: np.ndarray, groups: Sequence[Sequence[Phrase]], edges: Edges) -> float:
    """The share of groups of which a passage, of its tokens, has every phrase; 1 without groups."""
    if not groups:
        return 1.0
    return sum(all(_has(ids, each, edges) for each in group) for group in groups) / len(groups)


def _has(ids: np.ndarray, phrase: Phrase, edges: Edges) -> bool:
    return any((part == 0).any() for part in occurrences([phrase], lambda: iter([ids]), edges)())


def _begin(phrases: Sequence[Phrase], ids: np.ndarray, n: int, edges: Edges) -> np.ndarray:
    """What begins at ids[1 : n + 1]; further tokens follow, at least as many as a phrase has."""
    found = np.full(n, -1, np.int64)
    first, last = np.append(edges.first, OTHER), np.append(edges.last, OTHER)  # of id -1
    for number, phrase in reversed(list(enumerate(phrases))):
        for spelling in phrase:
            at = np.flatnonzero(ids[1 : n + 1] == spelling[0]) + 1
            for further, id in enumerate(spelling[1:], 1):
                at = at[ids[at + further] == id]
            before, after = edges.first[spelling[0]], edges.last[spelling[-1]]
            if before != OTHER:
                at = at[last[ids[at - 1]] != before]
            if after != OTHER:
                at = at[first[ids[at + len(spelling)]] != after]
            found[at - 1] = number
    return found
