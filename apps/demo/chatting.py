"""A chat with a session: replies, the talk so far, and undoing a turn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.demo.jobs import Job
from apps.demo.quotes import Quotes, Talk
from apps.demo.recalling import announced, check_recall
from apps.demo.shelf import Shelf

if TYPE_CHECKING:
    from streamlm.checkpoints.checkpoint import Checkpoint
    from streamlm.engine import Engine
    from streamlm.runtime.sampling import Sampling

MAX_MESSAGE = 8_000  # characters
MAX_TOKENS = 1000
SHOWN_TOKENS = 4096  # newest tokens whose turns are shown


@dataclass(frozen=True)
class ReplyStarted:
    """A message is about to be read: the snapshot to undo to, and the talk before it."""

    snapshot: int
    before: Talk


@dataclass(frozen=True)
class ReplyFinished:
    """The reply is finished and saved: the session's position, and whether the model ended it."""

    position: int
    whole: bool


def reply(
    job: Job,
    shelf: Shelf,
    name: str,
    *,
    message: str,
    system: str | None,
    sampling: Sampling,
    max_tokens: int,
    engine: Engine,
    quotes: Quotes,
    seed: int | None = None,
    recall: int = 0,
) -> None:
    """Answer a message; emits ReplyStarted, pieces of text, and finally ReplyFinished.

    A Recollection comes before the first piece if `recall` is not 0. ReplyFinished is missing if
    the job is cancelled; the session then keeps the reply so far.

    Args:
        recall: up to so many passages are put before the message.

    Raises:
        ValueError: the message or the system prompt is too long, or `recall` is out of range.
        Refused: see `Shelf.open`; or the model does not chat.
        Cancelled: by the visitor.
    """
    for what, text in (("message", message), ("system prompt", system or "")):
        if len(text) > MAX_MESSAGE:
            raise ValueError(
                f"The {what} has {len(text):,} characters; allowed: at most {MAX_MESSAGE:,}. "
                "The Read tab reads longer texts."
            )
    check_recall(recall, message)
    from streamlm.sessions.reply import Reply  # needs torch

    with shelf.open(name, engine.checkpoint, create=True) as session:
        options: dict[str, Any] = {"max_tokens": max_tokens, "seed": seed, "recall": recall}
        options["system"] = system
        Reply(session.live, message, sampling, stop=(), **options)  # refused before it is shown
        snapshot = job.result(engine.save(session))
        before = quotes.transcript(session, shelf, name, tokens=SHOWN_TOKENS)
        job.emit(ReplyStarted(snapshot.seq, before))
        with job.request(engine.reply(session, message, sampling, **options)) as pieces:
            events: Iterable[Any] = pieces
            if recall:
                events = announced(pieces, session, shelf, name, message, before=snapshot)
            for event in events:
                job.emit(event)
        conversation = session.conversation
        whole = conversation is not None and not conversation.open
        job.emit(ReplyFinished(session.position, whole))


def talk_of(shelf: Shelf, name: str, *, checkpoint: Checkpoint, quotes: Quotes) -> Talk:
    """The newest turns of a session; none if it does not exist.

    Raises:
        Refused: see `Shelf.open`; or the model does not chat.
    """
    if not shelf.has(name):
        return []
    with shelf.open(name, checkpoint, readonly=True) as session:
        return quotes.transcript(session, shelf, name, tokens=SHOWN_TOKENS)


def undo(shelf: Shelf, name: str, *, snapshot: int, engine: Engine, quotes: Quotes) -> Talk:
    """Rewind to a snapshot; returns the talk before it."""
    with shelf.open(name, engine.checkpoint) as session:
        engine.rewind(session, snapshot=snapshot).result()
        return quotes.transcript(session, shelf, name, tokens=SHOWN_TOKENS)
