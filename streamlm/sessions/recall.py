"""Recall: the passages that a session has read and that a text asks for, however long ago.

Two searches propose passages: the attention of the model's retrieval heads over the archive of
keys, and BM25 over the token log. Each proposal is scored by both: attention knows what is meant,
rare words tell people of the same kind apart. A model without retrieval heads has BM25 alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import torch

from memory_store import Ref
from streamlm.memory.lexical import Terms, best_passages
from streamlm.memory.recall import KeySearch, ReadKeys
from streamlm.models.llama import LlamaModel
from streamlm.models.retrieval import RetrievalHeads, question_queries
from streamlm.sessions.search import CHUNK, SPAN, first_after
from streamlm.state import State
from streamlm.transfer import send
from tokenizer import Tokenizer

if TYPE_CHECKING:
    from streamlm.sessions.live import LiveStream

PROPOSED = 8  # passages that each search proposes
BEFORE, AFTER = 24, 40  # tokens of a passage before and behind its middle
MARGIN = 24  # tokens by which a passage may grow to whole sentences
NEAR = 8  # tokens around the middle of a lexical proposal in which attention may peak
ENDS = (".", "!", "?", "\n", "”", '"')
# Share of rare words, in units of the logarithm of attention; measured with `streamlm calibrate`.
SHARE_WEIGHT = 4.0
SURE = 0.5  # score from which a passage is taken to answer


@dataclass(frozen=True)
class Recalled:
    """A passage that a session has read.

    Attributes:
        start, stop: its tokens, start ≤ i < stop.
        score: how well it answers, 0 to 1.
        sure: whether the score is one of passages that answer.
        text: of these tokens.
        saved: when the first snapshot after it was saved; None if none was.
    """

    start: int
    stop: int
    score: float
    sure: bool
    text: str
    saved: datetime | None


@dataclass(frozen=True)
class Question:
    """A text that asks, and the stream in which it asks.

    Attributes:
        text: not empty.
        model, state, heads: of a stream that could read it; None without retrieval heads.
        read_keys: the archive; see `Archive.read`.
    """

    text: str
    tokenizer: Tokenizer
    model: LlamaModel | None = None
    state: State | None = None
    heads: RetrievalHeads | None = None
    read_keys: ReadKeys | None = None

    def attention(self, stop: int) -> KeySearch | None:
        """Its attention over the keys before a position; None without retrieval heads."""
        if self.model is None or self.state is None or self.heads is None:
            return None
        assert self.read_keys is not None
        before = len(self.tokenizer.encode("\n\n"))
        ids = self.tokenizer.encode(f"\n\n{self.text}").astype(np.int64)
        tokens = send(torch.from_numpy(ids)[None], self.model.device)
        queries = question_queries(self.model, tokens, self.state, self.heads.heads)[:, before:]
        keys = self.heads.which_keys(self.model.config)
        # The first inputs of a stream receive the attention that goes nowhere.
        begin = max(1, self.model.config.pinned_len)
        return KeySearch(queries, keys, self.read_keys, start=begin, stop=stop)


def recall(
    question: Question,
    read: Callable[[int, int], np.ndarray],
    stop: int,
    *,
    history: Sequence[Ref],
    k: int = 1,
) -> list[Recalled]:
    """The k best passages, best first; they do not overlap.

    Args:
        read: returns the token ids from one position to another.
        stop: the position at which the search ends.
        history: the snapshots of the stream, oldest first.

    Raises:
        ValueError: `k` is below 1, or the text is empty.
        memory_store.NotFound: old tokens were deleted.
    """
    if k < 1:
        raise ValueError(f"k = {k}; allowed: at least 1")
    text = question.text.strip()
    if not text:
        raise ValueError("nothing to recall; allowed: a text with at least one word")
    tokenizer, step = question.tokenizer, CHUNK // SPAN * SPAN

    def chunks() -> Iterator[np.ndarray]:
        for begin in range(0, stop, step):
            yield read(begin, min(begin + step, stop))

    # A word has other tokens at the beginning of a text than behind a space.
    query = np.concatenate([tokenizer.encode(text), tokenizer.encode(f" {text}")])
    terms = Terms.of(query, chunks, span=SPAN)
    lexical = best_passages(terms, chunks, k=max(k, PROPOSED), span=SPAN)
    middles = [(each.start + each.stop) // 2 - (AFTER - BEFORE) // 2 for each in lexical]
    attention = question.attention(stop + 1)
    scored: list[tuple[float, int]] = []
    if attention is not None:
        best = [(place.position - 1, place.score) for place in attention.best(max(k, PROPOSED))]
        for middle in middles:
            best.append((middle, attention.near(middle + 1 - NEAR, middle + 2 + NEAR)))
    else:
        best = [(middle, 1.0) for middle in middles]
    for middle, seen in best:
        share = terms.share(read(max(0, middle - BEFORE), min(stop, middle + AFTER)))
        scored.append((_score(seen, share), middle))
    found: list[Recalled] = []
    for score, middle in sorted(scored, key=lambda each: (-each[0], each[1])):
        start, end, passage = _passage(read, middle, stop, tokenizer)
        if all(end <= other.start or other.stop <= start for other in found):
            saved = first_after(history, end)
            found.append(Recalled(start, end, score, score >= SURE, passage, saved))
    return found[:k]


def check_recall(live: "LiveStream", k: int, prompt: str) -> None:
    """Raise ValueError, with what is allowed, unless a prompt may be given with `recall=k`."""
    if k < 0:
        raise ValueError(f"recall = {k}; allowed: 0 or more")
    if k and not prompt.strip():
        raise ValueError("recall without a prompt; allowed: with a prompt that asks")
    if k:
        live.require_store("recall")


def quoted(passages: Sequence[Recalled], prompt: str) -> str:
    """A prompt with the passages before it, in the order of the stream."""
    texts = [each.text for each in sorted(passages, key=lambda each: each.start)]
    return "\n\n".join([*texts, prompt.lstrip("\n")])


def _score(attention: float, share: float) -> float:
    """0 to 1, from a place's attention and the share of rare words that its passage has."""
    if attention <= 0:
        return 0.0
    return math.exp((math.log(attention) + SHARE_WEIGHT * (share - 1)) / SHARE_WEIGHT)


def _passage(
    read: Callable[[int, int], np.ndarray], middle: int, stop: int, tokenizer: Tokenizer
) -> tuple[int, int, str]:
    """The tokens around a middle, grown to whole sentences where these end near: start, end, text."""
    start, end = max(0, middle - BEFORE), min(stop, middle + AFTER)
    low, high = max(0, start - MARGIN), min(stop, end + MARGIN)
    ids = read(low, high)
    ends = [
        i for i, id in enumerate(ids.tolist()) if tokenizer.decode([id]).rstrip(" ")[-1:] in ENDS
    ]
    begin = max((low + i + 1 for i in ends if low + i < start), default=start)
    finish = min((low + i + 1 for i in ends if low + i + 1 >= end), default=end)
    return begin, finish, tokenizer.decode(ids[begin - low : finish - low]).strip()
