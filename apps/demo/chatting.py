"""A chat with a session: replies, the talk so far, and undoing a turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from apps.demo.jobs import Job
from apps.demo.quotes import Quotes, Talk
from apps.demo.recalling import announced, check_recall
from apps.demo.shelf import Shelf

if TYPE_CHECKING:
    from streamlm.checkpoints.checkpoint import Checkpoint
    from streamlm.runtime.sampling import Sampling

MAX_MESSAGE = 8_000  # characters; a message is read in one step, for which others wait
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
    checkpoint: Checkpoint,
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
        ValueError: the message is too long, or `recall` is out of range.
        Refused: see `Shelf.open`; or the model does not chat.
        Cancelled: by the visitor.
    """
    if len(message) > MAX_MESSAGE:
        raise ValueError(
            f"The message has {len(message):,} characters; allowed: at most {MAX_MESSAGE:,}. "
            "The Read tab reads longer texts."
        )
    check_recall(recall, message)
    with shelf.open(name, checkpoint, create=True) as session, job.turn():
        pieces = session.reply(
            message,
            system=system,
            max_tokens=max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=seed,
            recall=recall,
        )
        snapshot = session.save()
        before = quotes.transcript(session, shelf, name, tokens=SHOWN_TOKENS)
        job.emit(ReplyStarted(snapshot.seq, before))
        if recall:
            pieces = announced(job, session, message, pieces, position=snapshot.position)
        for piece in pieces:
            job.emit(piece)
            job.yield_turn()
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


def undo(
    job: Job, shelf: Shelf, name: str, *, snapshot: int, checkpoint: Checkpoint, quotes: Quotes
) -> Talk:
    """Rewind to a snapshot; returns the talk before it."""
    with shelf.open(name, checkpoint) as session:
        session.rewind(snapshot=snapshot)
        return quotes.transcript(session, shelf, name, tokens=SHOWN_TOKENS)
