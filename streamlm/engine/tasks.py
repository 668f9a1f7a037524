"""Tasks: requests as generators that yield between bounded steps.

A task runs on the engine's thread alone. At each `yield` it says what it wants next, and other
tasks get their turns.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any

from streamlm.engine.handle import Cancelled, Handle
from streamlm.engine.wants import Task, Turn, Want
from streamlm.engine.writing import Writers, writing
from streamlm.engine.written import Reason, Written
from streamlm.runtime.steps import Steps
from streamlm.runtime.text_stream import TextStream
from streamlm.sessions.feed import Feed
from streamlm.sessions.generation import Generation, HeldLogprobs
from streamlm.sessions.live import LiveStream
from streamlm.sessions.prompt_search import PromptSearch
from streamlm.sessions.reply import Reply
from streamlm.sessions.saving import SessionStore


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


def stepping(steps: Steps[Any]) -> Task:
    """Take steps, each in a turn.

    Returns:
        Their result.
    """
    try:
        while True:
            yield Turn(next(steps))
    except StopIteration as ended:
        return ended.value
    finally:
        steps.close()


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


def recalling(live: LiveStream, search: PromptSearch, threads: Executor) -> Task:
    """Search for what a prompt asks for on another thread, while others go on."""
    if search.k:
        yield from stepping(live.ending_text())
        _, cancelled = yield from _aside(search.result, threads)
        if cancelled is not None:
            raise cancelled


def generating(
    writers: Writers,
    live: LiveStream,
    generation: Generation,
    *,
    handle: Handle,
    top_logprobs: int | None,
    threads: Executor,
) -> Task:
    """Read a prompt and generate: emits pieces of text, or each token with its log-probabilities.

    Args:
        top_logprobs: the number of likeliest tokens to emit with each; None emits text.
        threads: for the search of what is recalled.

    Returns:
        What was written.
    """
    before = live.position
    yield from recalling(live, generation.search, threads)
    yield from stepping(generation.reading())
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

    yield from writing(writers, live, generation.sampling, generation.max_tokens, on_token)
    left: Iterable[Any] = held.left() if top_logprobs is not None else [stops.held]
    for event in () if stopped else left:
        if event:
            handle.emit(event)
    reason: Reason = "stop" if stopped else "length"
    return Written(n_tokens, n_read=n_read, position=live.position, reason=reason)


def replying(
    writers: Writers,
    live: LiveStream,
    reply: Reply,
    *,
    handle: Handle,
    top_logprobs: int | None = None,
    threads: Executor,
) -> Task:
    """Read a message and write the model's reply: emits as `generating`.

    Returns:
        What was written, the token of its end included.
    """
    before = live.position
    yield from recalling(live, reply.search, threads)
    yield from stepping(reply.reading())
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

    yield from writing(writers, live, reply.sampling, reply.max_tokens, on_token, in_reply=True)
    left: Iterable[Any] = held.left() if top_logprobs is not None else [stops.held]
    for event in () if stopped else left:
        if event:
            handle.emit(event)
    reason: Reason = "stop" if stopped or closed else "length"
    return Written(n_tokens, n_read=n_read, position=live.position, reason=reason)


def feeding(
    live: LiveStream, feed: Feed, *, handle: Handle, score: bool, token_events: bool
) -> Task:
    """Read sources: emits the report so far, the newest only.

    Args:
        token_events: emit all reports, each with the tokens since the one before.

    Returns:
        The report.
    """
    for n_tokens in feed.feeding(score=score):
        if token_events:
            handle.emit(feed.report.take())
        else:
            handle.emit(feed.report.sums(), newest_only=True)
        yield Turn(n_tokens)
    yield from saving(live, whole_feed=True)
    return feed.ended()


def scoring(feed: Feed, *, handle: Handle) -> Task:
    """Score sources: emits the report so far, the newest only.

    Returns:
        The report.
    """
    for n_tokens in feed.scoring():
        handle.emit(feed.report.sums(), newest_only=True)
        yield Turn(n_tokens)
    return feed.report


def calling(function: Callable[[], Any]) -> Task:
    """Call a function, in one step.

    Returns:
        Its result.
    """
    yield Turn()
    return function()


def calling_aside(live: LiveStream, function: Callable[[], Any], threads: Executor) -> Task:
    """Call a function on another thread while others go on, and save its session then.

    It is waited for even if the request is cancelled.

    Returns:
        Its result.
    """
    result, _ = yield from _aside(function, threads)
    with live.one_thread.use("save"):
        yield from saving(live)
    return result


def _aside(function: Callable[[], Any], threads: Executor) -> Task:
    """Call a function on another thread while others go on.

    It is waited for even if the request is cancelled.

    Returns:
        Its result, and the error that cancelled the request, if any.
    """
    called, cancelled = threads.submit(function), None
    while not called.done():
        try:
            yield Want.WAIT
        except Cancelled as error:
            cancelled = error
    return called.result(), cancelled
