"""Tasks: requests as generators that yield between bounded steps.

A task runs on the engine's thread alone. At each `yield` it says what it wants next, and other
tasks get their turns.
"""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np

from streamlm.engine.batch import Batch
from streamlm.engine.handle import Cancelled, Handle
from streamlm.engine.row import Drawn, Row
from streamlm.engine.written import Reason, Written
from streamlm.runtime.row_sampling import Draw
from streamlm.runtime.sampling import Sampling
from streamlm.runtime.text_stream import TextStream
from streamlm.sessions.feed import Feed
from streamlm.sessions.generation import Generation, HeldLogprobs
from streamlm.sessions.live import LiveStream
from streamlm.sessions.reply import Reply
from streamlm.sessions.saving import SessionStore


class Want(Enum):
    """What a task needs to go on: another turn, or something that others have to finish first."""

    TURN = auto()
    WAIT = auto()


@dataclass(frozen=True, eq=False)
class Decode:
    """A task wants the newest token of its row to be read, and a token to be drawn."""

    row: Row
    draw: Draw


Task = Generator["Want | Decode", "Drawn | None", Any]
OnToken = Callable[[TextStream, str], bool]


def serving(live: LiveStream, body: Task) -> Task:
    """A task that has its session for itself, and saves it when it ends, however it ends.

    Returns:
        The body's result.

    Raises:
        InUse: another thread uses the session.
        Exception: that of the body, else that of the save.
    """
    with live.one_thread.use("serve a request"):
        try:
            result = yield from body
        except Exception:
            with suppress(Exception):  # the body's is the one to report
                yield from saving(live)
            raise
        yield from saving(live)
        if isinstance(result, Written) and live.store is not None:
            result.saved = live.store.saved
        return result


def saving(live: LiveStream, *, whole_feed: bool = False) -> Task:
    """Commit what is not saved yet, and wait for it while others go on.

    Args:
        whole_feed: a call of `feed` has ended, which is not to be resumed.
    """
    store = live.store
    if store is None or live.readonly or live.closed:
        return
    yield from _committing(store)
    if live.begin_save(None if whole_feed else live.cursor):
        yield from _committing(store)
        store.settle()


def _committing(store: SessionStore) -> Task:
    """Wait for the commit that was started, if any."""
    while store.committing:
        yield Want.WAIT


def generating(
    batch: Batch | None,
    live: LiveStream,
    generation: Generation,
    *,
    handle: Handle,
    top_logprobs: int | None,
) -> Task:
    """Read a prompt and generate: emits pieces of text, or each token with its log-probabilities.

    Args:
        batch: None decodes the session by itself.
        top_logprobs: the number of likeliest tokens to emit with each; None emits text.

    Returns:
        What was written.
    """
    before = live.position
    for _ in generation.reading():
        yield Want.TURN
    n_read = live.position - before
    stops, n_tokens, stopped = generation.stops, 0, False
    held = HeldLogprobs(stops)

    def on_token(stream: TextStream, piece: str) -> bool:
        nonlocal n_tokens, stopped
        n_tokens += 1
        if top_logprobs is None:
            ready, stopped = stops.push(piece)
            if ready:
                handle.emit(ready)
        else:
            token = stream.token_logprob(live.checkpoint, piece, top=top_logprobs)
            tokens, stopped = held.push(token)
            for each in tokens:
                handle.emit(each)
        return stopped

    yield from _writing(batch, live, generation.sampling, generation.max_tokens, on_token)
    left: Iterable[Any] = held.left() if top_logprobs is not None else [stops.held]
    for event in () if stopped else left:
        if event:
            handle.emit(event)
    reason: Reason = "stop" if stopped else "length"
    return Written(n_tokens, n_read=n_read, position=live.position, reason=reason)


def replying(
    batch: Batch | None,
    live: LiveStream,
    reply: Reply,
    *,
    handle: Handle,
    top_logprobs: int | None = None,
) -> Task:
    """Read a message and write the model's reply: emits as `generating`.

    Returns:
        What was written, the token of its end included.
    """
    before = live.position
    for _ in reply.reading():
        yield Want.TURN
    n_read = live.position - before
    stops, n_tokens, stopped, closed = reply.stops, 0, False, False
    held = HeldLogprobs(stops)

    def on_token(stream: TextStream, piece: str) -> bool:
        nonlocal n_tokens, stopped, closed
        n_tokens += 1
        closed = stream.conversation is None or not stream.conversation.open
        if top_logprobs is None:
            ready, stopped = stops.push(piece)
            if ready:
                handle.emit(ready)
        elif piece or not closed:  # the token of the end is no part of the reply
            token = stream.token_logprob(live.checkpoint, piece, top=top_logprobs, in_reply=True)
            tokens, stopped = held.push(token)
            for each in tokens:
                handle.emit(each)
        return stopped or closed

    yield from _writing(batch, live, reply.sampling, reply.max_tokens, on_token, in_reply=True)
    left: Iterable[Any] = held.left() if top_logprobs is not None else [stops.held]
    for event in () if stopped else left:
        if event:
            handle.emit(event)
    reason: Reason = "stop" if stopped or closed else "length"
    return Written(n_tokens, n_read=n_read, position=live.position, reason=reason)


def _writing(
    batch: Batch | None,
    live: LiveStream,
    sampling: Sampling,
    limit: int,
    on_token: OnToken,
    *,
    in_reply: bool = False,
) -> Task:
    """Generate at most `limit` tokens, until `on_token` returns True."""
    if batch is None:
        yield from _writing_alone(live, sampling, limit, on_token, in_reply=in_reply)
        return
    if not limit:
        return
    while not batch.n_free:
        yield Want.WAIT
    row = Row(batch, live)
    try:
        for n in range(limit):
            drawn = yield Decode(row, row.draw(sampling, n_said=n if in_reply else None))
            assert drawn is not None
            piece = row.accept(drawn, in_reply=in_reply)
            row.save_if_due()
            if on_token(row.stream, piece):
                return
    finally:
        row.close()


def _writing_alone(
    live: LiveStream, sampling: Sampling, limit: int, on_token: OnToken, *, in_reply: bool
) -> Task:
    """`_writing` without a batch, for heads that cannot read rows of any phase."""
    for n in range(limit):
        stream, checkpoint, cache = live.stream, live.checkpoint, live.cache
        if in_reply:
            stream, token, piece = stream.reply_token(checkpoint, sampling, cache, n_said=n)
        else:
            stream, token, piece = stream.generate_token(checkpoint, sampling, cache)
        live.move(stream, np.array([token], np.int32), live.cursor)
        live.save_if_due()
        if on_token(stream, piece):
            return
        yield Want.TURN


def feeding(live: LiveStream, feed: Feed, *, handle: Handle, score: bool) -> Task:
    """Read sources: emits the report so far, the newest only.

    Returns:
        The report.
    """
    for _ in feed.feeding(score=score):
        handle.emit(feed.report, newest_only=True)
        yield Want.TURN
    yield from saving(live, whole_feed=True)
    return feed.ended()


def scoring(feed: Feed, *, handle: Handle) -> Task:
    """Score sources: emits the report so far, the newest only.

    Returns:
        The report.
    """
    for _ in feed.scoring():
        handle.emit(feed.report, newest_only=True)
        yield Want.TURN
    return feed.report


def calling(function: Callable[[], Any]) -> Task:
    """Call a function, in one step.

    Returns:
        Its result.
    """
    yield Want.TURN
    return function()


def calling_aside(live: LiveStream, function: Callable[[], Any], threads: Executor) -> Task:
    """Call a function on another thread while others go on, and save its session then.

    It is waited for even if the request is cancelled.

    Returns:
        Its result.
    """
    called = threads.submit(function)
    while not called.done():
        with suppress(Cancelled):
            yield Want.WAIT
    result = called.result()
    with live.one_thread.use("save"):
        yield from saving(live)
    return result
