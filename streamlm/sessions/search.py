"""Searching everything that a session ever read: its token log, which no memory bounds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from memory_store import Mismatch, Ref
from memory_store.store import Store
from streamlm.config import check_whole
from streamlm.memory.lexical import search
from tokenizer import Tokenizer

CHUNK = 1 << 18  # tokens in memory at a time
SPAN = 64  # tokens of a passage


@dataclass(frozen=True)
class Found:
    """A passage that a session has read.

    Attributes:
        start, stop: its tokens, start ≤ i < stop.
        score: how well it matches, above 0; comparable within one search.
        text: of these tokens.
        saved: when the first snapshot after it was saved; None if none was.
    """

    start: int
    stop: int
    score: float
    text: str
    saved: datetime | None


def search_log(
    read: Callable[[int, int], np.ndarray],
    position: int,
    tokenizer: Tokenizer,
    text: str,
    *,
    history: Sequence[Ref],
    k: int = 5,
    span: int = SPAN,
) -> list[Found]:
    """The passages of a stream that match a text best, by the rare tokens that they share (BM25).

    No model is needed. Memory is bounded; the time is linear in the stream.

    Args:
        read: returns the ids from one position to another.
        position: the number of tokens of the stream.
        history: its snapshots, oldest first.
        k: the maximum number of passages; they do not overlap.
        span: tokens of a passage.

    Raises:
        ValueError: the text has no tokens, or `k` or `span` is below 1.
        memory_store.NotFound: old tokens were deleted.
    """
    for name, value in (("k", k), ("span", span)):
        check_whole(name, value, least=1)
    wanted = text.strip()
    if not wanted:
        raise ValueError("nothing to search for; allowed: a text with at least one word")
    # A word has other tokens at the beginning of a text than behind a space.
    query = np.concatenate([tokenizer.encode(wanted), tokenizer.encode(f" {wanted}")])
    step = max(CHUNK // span, 1) * span

    def chunks() -> Iterator[np.ndarray]:
        for begin in range(0, position, step):
            yield read(begin, min(begin + step, position))

    found = []
    for each in search(query, chunks, k=k, span=span):
        passage = tokenizer.decode(read(each.start, each.stop))
        saved = first_after(history, each.stop)
        found.append(Found(each.start, each.stop, each.score, passage, saved))
    return found


def search_store(
    store: Store, ref: Ref, tokenizer: Tokenizer, text: str, *, k: int = 5, span: int = SPAN
) -> list[Found]:
    """`search_log` of a stored stream, without its model.

    Args:
        ref: the snapshot at which the stream ends.

    Raises:
        ValueError, memory_store.NotFound: as `search_log`.
        memory_store.Mismatch: another tokenizer wrote the session.
    """
    check_tokenizer(store, tokenizer)
    history = [each for each in store.refs(ref.branch) if each.seq <= ref.seq]
    return search_log(
        lambda start, stop: store.tokens(ref, start, stop),
        ref.position,
        tokenizer,
        text,
        history=history,
        k=k,
        span=span,
    )


def check_tokenizer(store: Store, tokenizer: Tokenizer) -> None:
    """Raise memory_store.Mismatch if another tokenizer wrote the session."""
    given, recorded = tokenizer.fingerprint, store.fingerprints.get("tokenizer")
    if recorded != given:
        message = f"the session was written with tokenizer {recorded}, and this one is {given}"
        raise Mismatch(message, {"tokenizer": (recorded, given)})


def first_after(history: Sequence[Ref], stop: int) -> datetime | None:
    """When the stream was first saved behind a position and not rewound to before it since."""
    first = None
    for ref in reversed(history):
        if ref.position < stop:
            break
        first = ref
    return None if first is None else datetime.fromtimestamp(first.created).astimezone()
