"""A chat with a session: replies, the talk so far, and undoing a turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from apps.demo.jobs import Job
from apps.demo.shelf import Shelf

if TYPE_CHECKING:
    from streamlm.checkpoints.checkpoint import Checkpoint
    from streamlm.runtime.sampling import Sampling

MAX_MESSAGE = 8_000  # characters; a message is read in one step, for which others wait
MAX_TOKENS = 1000
SHOWN_TOKENS = 4096  # newest tokens whose turns are shown

Talk = list[dict[str, str]]  # see `Session.transcript`


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
    seed: int | None = None,
) -> None:
    """Answer a message; emits ReplyStarted, pieces of text, and finally ReplyFinished.

    ReplyFinished is missing if the job is cancelled; the session then keeps the reply so far.

    Raises:
        ValueError: the message is too long.
        Refused: see `Shelf.open`; or the model does not chat.
        Cancelled: by the visitor.
    """
    if len(message) > MAX_MESSAGE:
        raise ValueError(
            f"The message has {len(message):,} characters; allowed: at most {MAX_MESSAGE:,}. "
            "The Read tab reads longer texts."
        )
    with shelf.open(name, checkpoint, create=True) as session, job.turn():
        pieces = session.reply(
            message,
            system=system,
            max_tokens=max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=seed,
        )
        snapshot = session.save()
        job.emit(ReplyStarted(snapshot.seq, session.transcript(tokens=SHOWN_TOKENS)))
        for piece in pieces:
            job.emit(piece)
            job.yield_turn()
        conversation = session.conversation
        whole = conversation is not None and not conversation.open
        job.emit(ReplyFinished(session.position, whole))


def talk_of(shelf: Shelf, name: str, checkpoint: Checkpoint) -> Talk:
    """The newest turns of a session; none if it does not exist.

    Raises:
        Refused: see `Shelf.open`; or the model does not chat.
    """
    if not shelf.has(name):
        return []
    with shelf.open(name, checkpoint, readonly=True) as session:
        return session.transcript(tokens=SHOWN_TOKENS)


def undo(job: Job, shelf: Shelf, name: str, *, snapshot: int, checkpoint: Checkpoint) -> Talk:
    """Rewind to a snapshot; returns the talk before it."""
    with shelf.open(name, checkpoint) as session:
        session.rewind(snapshot=snapshot)
        return session.transcript(tokens=SHOWN_TOKENS)
