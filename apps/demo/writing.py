"""Writing on where a session stands, taking it back, and what two forks make of the same words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apps.demo.reading import strip
from apps.demo.shelf import Shelf
from apps.demo.work import Job
from streamlm.runtime.reports import TokenLogprob

if TYPE_CHECKING:
    from streamlm.checkpoints.checkpoint import Checkpoint
    from streamlm.runtime.sampling import Sampling
    from streamlm.sessions.session import Session

SHOWN = 60  # tokens before the writing that are shown
OTHERS = 8  # likely tokens told with each that is written
MAX_TOKENS = 1000
MAX_STOPS = 20


@dataclass(frozen=True)
class Begun:
    """Writing begins: where the branch stood before, and the text that leads to it."""

    snapshot: int
    before: str


@dataclass(frozen=True)
class Written:
    """Writing has ended and is saved: where the session is, and a picture of its memory."""

    position: int
    picture: str


@dataclass(frozen=True)
class Side:
    """One of two that are put side by side.

    Attributes:
        name: a session; tokens: an earlier position in it, None where it stands.
        seed: of the random generator, None for the session's own.
    """

    name: str
    tokens: int | None = None
    temperature: float = 0.8
    seed: int | None = None


def write(
    job: Job,
    shelf: Shelf,
    name: str,
    *,
    prompt: str,
    sampling: Sampling,
    max_tokens: int,
    stops: Sequence[str] = (),
    seed: int | None,
    checkpoint: Checkpoint,
) -> None:
    """Write on; tells Begun, a TokenLogprob for each token, and Written unless it is stopped.

    Args:
        stops: the text ends before any of these.

    Raises:
        Refused: see `Shelf.open`.
        Stopped: by the visitor.
    """
    with shelf.open(name, checkpoint, create=True) as session, job.turn():
        saved, position = session.save(), session.position
        before = session.text(max(0, position - SHOWN), position) + session.tail
        job.tell(Begun(saved.seq, before))
        choices = session.generate_logprobs(
            prompt, sampling, max_tokens=max_tokens, top_logprobs=OTHERS, stop=stops, seed=seed
        )
        for choice in choices:
            job.tell(choice)
            job.pass_turn()
        job.tell(Written(session.position, strip(session)))


def stops_of(text: str) -> list[str]:
    r"""The strings to stop at that somebody typed, one a line; \n and \t are understood.

    Raises:
        ValueError: there are too many.
    """
    from streamlm.runtime.sampling import unescaped  # needs torch

    stops = [unescaped(line) for line in text.splitlines() if line.strip()]
    if len(stops) > MAX_STOPS:
        raise ValueError(f"{len(stops)} texts to stop at; allowed: at most {MAX_STOPS} lines")
    return stops


def take_back(
    job: Job, shelf: Shelf, name: str, *, snapshot: int, checkpoint: Checkpoint
) -> tuple[int, str, str]:
    """Rewind to before a writing; gives the position, the text there, and a picture."""
    with shelf.open(name, checkpoint) as session:
        session.rewind(snapshot=snapshot)
        position = session.position
        before = session.text(max(0, position - SHOWN), position) + session.tail
        return position, before, strip(session)


def write_both(
    job: Job,
    shelf: Shelf,
    sides: list[Side],
    *,
    prompt: str,
    max_tokens: int,
    checkpoint: Checkpoint,
) -> None:
    """Let forks write on after the same words; tells (side, TokenLogprob). Nothing is kept of it.

    Raises:
        Refused: see `Shelf.open`, or a position that is not there.
        Stopped: by the visitor.
    """
    from streamlm.runtime.sampling import Sampling  # needs torch

    with job.turn():
        writers = [
            fork.generate_logprobs(
                prompt,
                Sampling(temperature=side.temperature),
                max_tokens=max_tokens,
                top_logprobs=OTHERS,
                seed=side.seed,
            )
            for side, fork in zip(sides, forks(shelf, sides, checkpoint), strict=True)
        ]
        for _ in range(max_tokens):
            for index, writer in enumerate(writers):
                choice: TokenLogprob = next(writer)
                job.tell((index, choice))
            job.pass_turn()


def forks(shelf: Shelf, sides: list[Side], checkpoint: Checkpoint) -> list[Session]:
    """Sessions without a store that begin where `sides` say."""
    found = []
    for side in sides:
        with shelf.open(side.name, checkpoint, readonly=True) as session:
            found.append(session.fork(tokens=side.tokens))
    return found


@dataclass(frozen=True)
class Beside:
    """A text as two sides read it: bits per byte of each, and (text, bits, bits) of each token."""

    bits_per_byte: tuple[float, float]
    words: list[tuple[str, float, float]]


def compare(
    job: Job, shelf: Shelf, sides: list[Side], *, text: str, checkpoint: Checkpoint
) -> Beside:
    """How likely a text is after what each of two sides has read."""
    with shelf.told(sides[0].name):
        reports = []
        for fork in forks(shelf, sides, checkpoint):
            reports.append(fork.score(text, logprobs=True))
            job.pass_turn()
        first, second = reports
        tokenizer = checkpoint.tokenizer
        words = [
            (tokenizer.decode([id]), -a / math.log(2), -b / math.log(2))
            for id, a, b in zip(first.ids, first.logprobs, second.logprobs, strict=True)
        ]
        return Beside((first.bits_per_byte or 0.0, second.bits_per_byte or 0.0), words)
