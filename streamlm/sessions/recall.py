"""Recall: the passages that a session has read and that a text asks for, however long ago.

Three searches propose passages: the attention of the model's retrieval heads over the archive of
keys, and BM25 over the words of the log and over its pairs of words. Each proposal is scored by all
of them: attention knows what is meant, rare words tell similar things apart, and pairs tell apart
what has the same words in another order (Metzler & Croft 2005). A model without retrieval heads has
BM25 alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from memory_store import Ref
from streamlm.config import check_whole
from streamlm.memory.lexical import Chunks, Passage, Terms, best_passages
from streamlm.memory.phrases import Edges, Phrase, occurrences, share_within
from streamlm.memory.recall import KeySearch
from streamlm.runtime.text_stream import RecalledSpan
from streamlm.sessions.search import CHUNK, SPAN, first_after
from streamlm.sessions.words import edges, names, phrases
from tokenizer import Tokenizer

ReadTokens = Callable[[int, int], np.ndarray]  # (start, stop) → ids

PROPOSED = 8  # passages that each search proposes
BEFORE, AFTER = 24, 40  # tokens of a passage before and behind its middle
MARGIN = 24  # tokens by which a passage may grow to whole sentences
NEAR = 8  # tokens around the middle of a lexical proposal in which attention may peak
ENDS = (".", "!", "?", "\n", "”", '"')
# What the shares of rare words and of rare pairs count, in units of the logarithm of attention.
# Where no attention tells, pairs of common words must not outweigh a rare word.
WITH_HEADS, WITHOUT_HEADS = (4.0, 2.0), (6.0, 1.0)
# What a passage that is taken to answer has at least: its score, the nats by which the words that
# it shares with the text are rarer than chance, and the share of the text's names and numbers.
SURE, SURPRISE, NAMED = 0.3, 2.0, 0.5


@dataclass(frozen=True)
class Recalled:
    """A passage that a session has read.

    Attributes:
        start, stop: its tokens, start ≤ i < stop.
        score: how well it answers, 0 to 1.
        sure: whether it is taken to answer: it has half of the names and numbers of the text, and
            more of its rare words than a passage would have by chance.
        text: of these tokens.
        saved: when the first snapshot after it was saved; None if none was.
    """

    start: int
    stop: int
    score: float
    sure: bool
    text: str
    saved: datetime | None


def recall(
    text: str,
    tokenizer: Tokenizer,
    read: ReadTokens,
    stop: int,
    *,
    ask: Callable[[int], KeySearch] | None = None,
    history: Sequence[Ref] = (),
    k: int = 1,
) -> list[Recalled]:
    """The k best passages for a text, best first; they do not overlap.

    Args:
        read: returns the token ids from one position to another.
        stop: the position at which the search ends.
        ask: returns the attention of the text over the keys before a position; None without an
            archive.
        history: the snapshots of the stream, oldest first.

    Raises:
        ValueError: `k` is below 1, or the text is empty.
        memory_store.NotFound: old tokens were deleted.
    """
    check_whole("k", k, least=1)
    text = text.strip()
    if not text:
        raise ValueError("nothing to recall; allowed: a text with at least one word")
    step = CHUNK // SPAN * SPAN

    def chunks() -> Iterator[np.ndarray]:
        for begin in range(0, stop, step):
            yield read(begin, min(begin + step, stop))

    words, pairs = (_Phrases.of(text, tokenizer, chunks, n) for n in (1, 2))
    named = names(text, tokenizer)
    lexical = [each for some in (words, pairs) for each in some.best(max(k, PROPOSED))]
    middles = [(each.start + each.stop) // 2 - (AFTER - BEFORE) // 2 for each in lexical]
    proposed = [(middle, 1.0) for middle in middles]
    if ask is not None:
        attention = ask(stop + 1)  # key i is that of token i - 1
        near = [attention.within(middle + 1 - NEAR, middle + 2 + NEAR) for middle in middles]
        proposed = [(at, found.score) for at, found in zip(middles, near, strict=True) if found]
        # Sentences alike beside the one that is meant move the middle; attention tells it apart.
        peaks = [attention.within(each.start + 1, each.stop + 1) for each in lexical]
        places = [*filter(None, peaks), *attention.best(max(k, PROPOSED))]
        proposed += [(place.position - 1, place.score) for place in places]
    scored = []
    for at, seen in proposed:
        ids = read(max(0, at - BEFORE), min(stop, at + AFTER))
        shares = [each.terms.share(each.within(ids)) for each in (words, pairs)]
        scored.append((_score(seen, shares, WITHOUT_HEADS if ask is None else WITH_HEADS), at))
    found: list[Recalled] = []
    for score, middle in sorted(scored, key=lambda each: (-each[0], each[1])):
        start, end, passage = passage_around(read, middle, stop, tokenizer)
        if all(end <= other.start or other.stop <= start for other in found):
            saved = first_after(history, end)
            ids = read(start, end)
            sure = (
                score >= SURE
                and words.terms.surprise(words.within(ids)) > SURPRISE
                and share_within(ids, named, words.edges) >= NAMED
            )
            found.append(Recalled(start, end, score, sure, passage, saved))
    return found[:k]


def passages_of(
    spans: Sequence[RecalledSpan], text: Callable[[int, int], str], history: Sequence[Ref]
) -> list[Recalled]:
    """The passages that were put before a prompt; see `Session.recalled`.

    Args:
        text: returns the text of the tokens from one position to another.
        history: as in `recall`.
    """
    return [
        Recalled(start, stop, score, True, text(start, stop).strip(), first_after(history, stop))
        for start, stop, score in spans
    ]


def quoted(passages: Sequence[str], prompt: str) -> str:
    """A prompt with passages before it."""
    return "\n\n".join([*passages, prompt.lstrip("\n")]) if passages else prompt


@dataclass(frozen=True)
class _Phrases:
    """The words of a text, or its pairs of words, and how rare each is in a stream."""

    phrases: Sequence[Phrase]
    edges: Edges
    terms: Terms
    chunks: Chunks

    @classmethod
    def of(cls, text: str, tokenizer: Tokenizer, chunks: Chunks, n: int) -> "_Phrases":
        """Each n words in a row."""
        found, kinds = phrases(text, tokenizer, n), edges(tokenizer)
        numbers = occurrences(found, chunks, kinds)
        return cls(found, kinds, Terms.of(np.arange(len(found)), numbers, span=SPAN), numbers)

    def best(self, k: int) -> list[Passage]:
        """The k best passages by these alone."""
        return best_passages(self.terms, self.chunks, k=k, span=SPAN)

    def within(self, ids: np.ndarray) -> np.ndarray:
        """The numbers of those that stand in a passage, of its tokens."""
        [*parts] = occurrences(self.phrases, lambda: iter([ids]), self.edges)()
        return np.concatenate(parts)


def _score(attention: float, shares: Sequence[float], weights: Sequence[float]) -> float:
    """0 to 1, from a place's attention and the shares of rare words and pairs in its passage."""
    if attention <= 0:
        return 0.0
    missing = sum(weight * (share - 1) for share, weight in zip(shares, weights, strict=True))
    score = math.exp((math.log(attention) + missing) / sum(weights))
    return min(1.0, score)  # masses may round to more than 1


def passage_around(
    read: ReadTokens, middle: int, stop: int, tokenizer: Tokenizer
) -> tuple[int, int, str]:
    """The tokens around a middle, grown to whole sentences that end near: start, stop, text."""
    start, end = max(0, middle - BEFORE), min(stop, middle + AFTER)
    low, high = max(0, start - MARGIN), min(stop, end + MARGIN)
    ids = read(low, high)
    ends = [
        i for i, id in enumerate(ids.tolist()) if tokenizer.decode([id]).rstrip(" ")[-1:] in ENDS
    ]
    begin = max((low + at + 1 for at in ends if low + at < start), default=start)
    finish = min((low + at + 1 for at in ends if low + at + 1 >= end), default=end)
    return begin, finish, tokenizer.decode(ids[begin - low : finish - low]).strip()
