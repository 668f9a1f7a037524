"""Generating text, undoing it, and running forks of sessions on the same text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.demo.jobs import Job
from apps.demo.recalling import announced, check_recall
from apps.demo.shelf import Shelf
from streamlm.engine import Cancelled, Handle
from streamlm.runtime.reports import TokenLogprob

if TYPE_CHECKING:
    from streamlm.engine import Engine
    from streamlm.runtime.sampling import Sampling
    from streamlm.sessions.session import Session

CONTEXT_TOKENS = 60  # tokens of earlier text shown before the generated text
ALTERNATIVES = 8  # likely tokens reported with each generated one
MAX_TOKENS = 1000
MAX_PROMPT = 100_000  # characters
MAX_STOPS = 20
MAX_STOP = 200  # characters
MAX_COMPARED = 20_000  # characters, each of whose tokens is shown
MIN_P = 0.1  # unless chosen otherwise: a small model's long tail is full of non-words


@dataclass(frozen=True)
class WriteStarted:
    """Generation starts.

    Attributes:
        snapshot: to undo to; before: the text that precedes it; branch: what was there before.
    """

    snapshot: int
    before: str
    branch: str = ""


@dataclass(frozen=True)
class WriteFinished:
    """Generation has ended, and its text is part of the session.

    Attributes:
        start: the position of the first generated token; None if it is not known.
        whole: False if the visitor has stopped it.
    """

    start: int | None
    whole: bool = True


@dataclass(frozen=True)
class Alternative:
    """A token to take in place of one that was generated: at a position, an id."""

    position: int
    id: int


@dataclass(frozen=True)
class ForkPoint:
    """Where a temporary fork starts, and how it samples.

    Attributes:
        name: a session; tokens: an earlier position in it, None for its current one.
        seed: of the random generator, None to continue the session's own.
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
    engine: Engine,
    recall: int = 0,
) -> None:
    """Continue a session; emits WriteStarted, a TokenLogprob per token, and finally WriteFinished.

    A Recollection comes before the first token if `recall` is not 0.

    Args:
        stops: stop strings; the text ends before the first of them.
        recall: up to so many passages are put before the prompt.

    Raises:
        ValueError: the prompt is too long, `recall` is out of range, or there is no prompt to
            recall for.
        Refused: see `Shelf.open`.
        Cancelled: by the visitor.
    """
    check_prompt(prompt)
    check_recall(recall, prompt)
    with shelf.open(name, engine.checkpoint, create=True) as session:
        snapshot = job.result(engine.save(session))
        job.emit(WriteStarted(snapshot.seq, _context(session)))
        request = engine.generate(
            session,
            prompt,
            sampling,
            max_tokens=max_tokens,
            top_logprobs=ALTERNATIVES,
            stop=stops,
            seed=seed,
            recall=recall,
        )

        def announce(tokens: Iterable[Any]) -> Iterable[Any]:
            return announced(tokens, session, shelf, name, prompt, before=snapshot)

        _emit(job, session, request, announce if recall else None, exact=not stops)


def take(
    job: Job,
    shelf: Shelf,
    name: str,
    alternative: Alternative,
    *,
    sampling: Sampling,
    max_tokens: int,
    stops: Sequence[str] = (),
    engine: Engine,
) -> str:
    """Let a session go on with another token than it has generated; emits as `write`.

    What was there before stays, as a branch.

    Returns:
        The full name of that branch.

    Raises:
        ValueError: the session has no such position.
        Refused: see `Shelf.open`.
        Cancelled: by the visitor.
    """
    with shelf.open(name, engine.checkpoint) as session:
        if not 0 <= alternative.position < session.position:
            raise ValueError("The session has changed since: generate again.")
        snapshot = job.result(engine.save(session))
        branch = shelf.free_branch(name)
        job.result(engine.fork(session, branch.partition("@")[2])).close()
        job.result(engine.rewind(session, to=alternative.position))
        job.emit(WriteStarted(snapshot.seq, "", branch))

        def put(session: Session) -> None:
            live, ids = session.live, np.array([alternative.id], np.int32)
            live.move(
                live.stream.read_ids(live.checkpoint, ids, cache=live.cache), ids, live.cursor
            )

        job.result(engine.call(session, put))
        request = engine.generate(
            session,
            "",
            sampling,
            max_tokens=max_tokens,
            top_logprobs=ALTERNATIVES,
            stop=stops,
        )
        _emit(job, session, request, exact=not stops)
        return branch


def _emit(
    job: Job,
    session: Session,
    request: Handle,
    through: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
    *,
    exact: bool,
) -> None:
    """Emit the events of a request to generate, `through` a function, and WriteFinished.

    Args:
        exact: no generated token is withheld.
    """
    n_tokens, stopped = 0, None
    try:
        with job.request(request) as tokens:
            for event in tokens if through is None else through(tokens):
                n_tokens += isinstance(event, TokenLogprob)
                job.emit(event)
            n_tokens = int(request.result())
    except Cancelled as cancelled:
        stopped = cancelled
    known = stopped is None or exact
    start = session.position - n_tokens if known else None
    job.emit(WriteFinished(start, whole=stopped is None))
    if stopped is not None:
        raise stopped


def check_prompt(prompt: str) -> None:
    """Raise ValueError if a prompt is too long."""
    if len(prompt) > MAX_PROMPT:
        raise ValueError(
            f"The prompt has {len(prompt):,} characters; allowed: at most {MAX_PROMPT:,}. "
            "The Read tab reads longer texts."
        )


def parse_stops(text: str) -> list[str]:
    r"""Parse stop strings typed by a visitor, one per line; \n and \t are escapes.

    Raises:
        ValueError: there are too many, or one is too long.
    """
    from streamlm.runtime.sampling import unescaped  # needs torch

    stops = [unescaped(line) for line in text.splitlines() if line.strip()]
    if len(stops) > MAX_STOPS:
        raise ValueError(f"{len(stops)} stop strings; allowed: at most {MAX_STOPS} lines")
    if (longest := max(map(len, stops), default=0)) > MAX_STOP:
        raise ValueError(f"A stop string has {longest:,} characters; allowed: at most {MAX_STOP}")
    return stops


def undo(shelf: Shelf, name: str, *, snapshot: int, engine: Engine) -> tuple[int, str]:
    """Rewind to a snapshot; returns the position, and the text before it."""
    with shelf.open(name, engine.checkpoint) as session:
        engine.rewind(session, snapshot=snapshot).result()
        return session.position, _context(session)


def _context(session: Session) -> str:
    """The text that leads to the session's position."""
    start = max(0, session.position - CONTEXT_TOKENS)
    return session.text(start, session.position) + session.tail


def write_forks(
    job: Job,
    shelf: Shelf,
    points: list[ForkPoint],
    *,
    prompt: str,
    max_tokens: int,
    engine: Engine,
) -> None:
    """Continue temporary forks from one prompt, in parallel; emits (index, TokenLogprob).

    The sessions are not modified.

    Raises:
        Refused: see `Shelf.open`; or the session has no such position.
        Cancelled: by the visitor.
    """
    from streamlm.runtime.sampling import Sampling  # needs torch

    check_prompt(prompt)
    with ExitStack() as stack:
        writers = []
        for point, fork in zip(points, _forks(shelf, points, engine), strict=True):
            request = engine.generate(
                fork,
                prompt,
                Sampling(temperature=point.temperature, min_p=MIN_P),
                max_tokens=max_tokens,
                top_logprobs=ALTERNATIVES,
                seed=point.seed,
            )
            writers.append(stack.enter_context(job.request(request)))
        for tokens in zip(*writers, strict=True):
            for event in enumerate(tokens):
                job.emit(event)


def _forks(shelf: Shelf, points: list[ForkPoint], engine: Engine) -> list[Session]:
    """Sessions without a store, one at each fork point."""
    forks = []
    for point in points:
        with shelf.open(point.name, engine.checkpoint, readonly=True) as session:
            forks.append(engine.fork(session, tokens=point.tokens).result())
    return forks


@dataclass(frozen=True)
class Comparison:
    """A text scored by two forks.

    Attributes:
        bits_per_byte: of each fork; tokens: the text of each token, and its bits in each fork.
    """

    bits_per_byte: tuple[float, float]
    tokens: list[tuple[str, float, float]]


def compare(shelf: Shelf, points: list[ForkPoint], *, text: str, engine: Engine) -> Comparison:
    """Score a text given everything that each of two sessions has read up to its fork point.

    Raises:
        ValueError: the text is too long to be shown word by word.
        Refused: see `Shelf.open`; or the session has no such position.
    """
    if len(text) > MAX_COMPARED:
        raise ValueError(
            f"The text has {len(text):,} characters; allowed: at most {MAX_COMPARED:,}"
        )
    with shelf.refusing(points[0].name):
        forks = _forks(shelf, points, engine)
        requests = [engine.score(fork, text, logprobs=True) for fork in forks]
        first, second = (request.result() for request in requests)
        tokenizer = engine.checkpoint.tokenizer
        tokens = [
            (tokenizer.decode([id]), -a / math.log(2), -b / math.log(2))
            for id, a, b in zip(first.ids, first.logprobs, second.logprobs, strict=True)
        ]
        return Comparison((first.bits_per_byte or 0.0, second.bits_per_byte or 0.0), tokens)
