"""Recall: the passages that answer a question, and those that were put before a prompt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

from apps.demo.jobs import Job
from apps.demo.render.recall_html import Recollection
from apps.demo.shelf import Shelf

if TYPE_CHECKING:
    from streamlm.checkpoints.checkpoint import Checkpoint
    from streamlm.sessions.recall import Recalled
    from streamlm.sessions.session import Session

Piece = TypeVar("Piece")
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
    shelf: Shelf, name: str, text: str, *, checkpoint: Checkpoint, k: int = MAX_PASSAGES
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
    with shelf.open(name, checkpoint, readonly=True) as session:
        position = session.position
        return _recollection(session, text, session.recall(text, k=k), position=position)


def announced(
    job: Job, session: Session, prompt: str, pieces: Iterator[Piece], *, position: int
) -> Iterator[Piece]:
    """The same pieces; emits a Recollection as soon as the prompt has been read.

    Args:
        pieces: what is generated behind the prompt; position: of the session before it.
    """
    first = list(islice(pieces, 1))
    job.emit(_put_before(session, prompt, position=position))
    yield from chain(first, pieces)


def _put_before(session: Session, prompt: str, *, position: int) -> Recollection:
    """What was put before the prompt that a session has just read."""
    from streamlm.sessions.recall import passages_of  # needs torch

    passages = passages_of(session.recalled, session.text, session.history())
    return _recollection(session, prompt, passages, position=position)


def _recollection(
    session: Session, text: str, passages: Sequence[Recalled], *, position: int
) -> Recollection:
    rare = rare_words(session, text, position=position) if passages else frozenset[str]()
    return Recollection(passages, position, rare, session.checkpoint.retrieval is None)


def rare_words(session: Session, text: str, *, position: int) -> frozenset[str]:
    """The words of a text that are rare in what was read before a position, in lower case.

    Words are counted in parts that are spread evenly, so that a long stream takes no longer.
    """
    parts = min(SAMPLES, -(-position // SAMPLE))
    counts: Counter[str] = Counter()
    for part in range(parts):
        start = position * part // parts
        counts.update(_words(session.text(start, min(start + SAMPLE, position))))
    limit = max(1.0, counts.total() / RARE)
    return frozenset(word for word in _words(text) if counts[word] <= limit)


def _words(text: str) -> list[str]:
    return [word.lower() for word in re.findall(r"\w+", text)]
