"""Recall: the passages that answer a question, and those that were put before a prompt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

from apps.demo.render.recall_html import Recollection
from apps.demo.shelf import Shelf

if TYPE_CHECKING:
    from memory_store import Ref
    from streamlm.checkpoints.checkpoint import Checkpoint
    from streamlm.engine import Engine
    from streamlm.sessions.recall import Recalled
    from streamlm.sessions.session import Session

Event = TypeVar("Event")
Text = Callable[[int, int], str]  # the text of the tokens from one position to another
MAX_PASSAGES = 3
MAX_QUESTION = 2_000  # characters
RARE = 1_000  # a word is rare if it is at most one in so many of the stream's
SAMPLE, SAMPLES = 4_096, 16  # tokens of a part in which words are counted, and parts


def check_recall(k: int, prompt: str) -> None:
    """Raise ValueError unless up to `k` passages may be put before a prompt."""
    if not 0 <= k <= MAX_PASSAGES:
        raise ValueError(f"recall = {k}; allowed: 0 to {MAX_PASSAGES}")
    if k and not prompt.strip():
        raise ValueError("Recall needs a prompt: type one, or set Recall to 0.")


def find(
    shelf: Shelf, name: str, text: str, *, engine: Engine, k: int = MAX_PASSAGES
) -> Recollection:
    """The k passages that answer a question best, whether they surely do or not.

    Raises:
        ValueError: the question is empty or too long, the session has read nothing, or `k` is out
            of range.
        Refused: see `Shelf.open`.
    """
    if not 1 <= k <= MAX_PASSAGES:
        raise ValueError(f"k = {k}; allowed: 1 to {MAX_PASSAGES}")
    if not text.strip():
        raise ValueError("Type a question first.")
    if len(text) > MAX_QUESTION:
        raise ValueError(
            f"The question has {len(text):,} characters; allowed: at most {MAX_QUESTION:,}."
        )
    if not shelf.has(name):
        raise ValueError(f"{name} has read nothing yet.")
    with shelf.open(name, engine.checkpoint, readonly=True) as session:
        recalled = engine.call(session, lambda session: session.recall(text, k=k), aside=True)
        return _recollection(
            engine.checkpoint, session.text, text, recalled.result(), position=session.position
        )


def announced(
    events: Iterable[Event], session: Session, shelf: Shelf, name: str, prompt: str, *, before: Ref
) -> Iterator[Event | Recollection]:
    """The events of a request that recalls, behind a Recollection.

    The first of them comes when the prompt has been read.

    Args:
        session: is being written; before: its snapshot before the prompt.
    """
    rest = iter(events)
    first = list(islice(rest, 1))
    yield _put_before(session, shelf, name, prompt, before=before)
    yield from chain(first, rest)


def _put_before(
    session: Session, shelf: Shelf, name: str, prompt: str, *, before: Ref
) -> Recollection:
    """What was put before the prompt that a session has just read."""
    from streamlm.sessions.recall import passages_of  # needs torch

    store = shelf.store(name)
    assert store is not None
    decode = session.checkpoint.tokenizer.decode

    def text(start: int, stop: int) -> str:
        return decode(store.tokens(before, start, stop))  # the session itself is in use

    passages = passages_of(session.recalled, text, store.refs(session.branch))
    return _recollection(session.checkpoint, text, prompt, passages, position=before.position)


def _recollection(
    checkpoint: Checkpoint,
    text: Text,
    asked: str,
    passages: Sequence[Recalled],
    *,
    position: int,
) -> Recollection:
    rare = rare_words(text, asked, position=position) if passages else frozenset[str]()
    return Recollection(passages, position, rare, checkpoint.retrieval is None)


def rare_words(text: Text, asked: str, *, position: int) -> frozenset[str]:
    """The words of a question that are rare in what was read before a position, in lower case.

    Words are counted in parts that are spread evenly, so that a long stream takes no longer.
    """
    parts = min(SAMPLES, -(-position // SAMPLE))
    counts: Counter[str] = Counter()
    for part in range(parts):
        start = position * part // parts
        counts.update(_words(text(start, min(start + SAMPLE, position))))
    limit = max(1.0, counts.total() / RARE)
    return frozenset(word for word in _words(asked) if counts[word] <= limit)


def _words(text: str) -> list[str]:
    return [word.lower() for word in re.findall(r"\w+", text)]
