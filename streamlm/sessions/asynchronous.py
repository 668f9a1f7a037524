"""AsyncSession: a session for code that runs in an event loop.

The session's work runs on one thread of its own, so the loop goes on meanwhile. Calls wait for
each other in the order in which they were made.
"""

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Self, TypeVar

from memory_store import Ref
from streamlm.runtime.reports import ReadReport, TokenLogprob
from streamlm.sessions.session import Session
from streamlm.sessions.sources import Source

T = TypeVar("T")


class AsyncSession:
    """The methods of a `Session`, to be awaited; `generate` and its like by `async for`.

    Args:
        session: from now on used by nobody else. Another thread that uses it makes calls fail with
            `InUse`. For many sessions of one model, an `Engine` batches their work.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="streamlm session")
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def call(self, function: Callable[[Session], T]) -> T:
        """Call a function with the session, on its thread, after the calls that came before.

        A call that is cancelled runs to its end; the next one waits for it.
        """
        async with self._turn:
            return await self._run(partial(function, self.session))

    async def feed(self, *sources: "Source | AsyncIterable[str]", **options: Any) -> ReadReport:
        """`Session.feed`; a source may also be an asynchronous iterator of text.

        Cancelling ends such a source; what came before is read.
        """
        async with self._turn:
            loop = asyncio.get_running_loop()
            pulled = {
                n: _Pulled(source, loop)
                for n, source in enumerate(sources)
                if isinstance(source, AsyncIterable)
            }
            given: Any = [pulled.get(n, source) for n, source in enumerate(sources)]
            stops = [each.stop for each in pulled.values()]
            return await self._run(partial(self.session.feed, *given, **options), stops)

    async def score(self, *sources: Source, **options: Any) -> ReadReport:
        """`Session.score`."""
        return await self.call(lambda session: session.score(*sources, **options))

    def generate(self, prompt: str = "", **options: Any) -> AsyncIterator[str]:
        """`Session.generate`; its pieces come by `async for`.

        Leaving the loop early leaves the session with the text that was generated so far; close the
        iterator, as `contextlib.aclosing` does, or the session stays in use until it is collected.
        """
        return self._each(lambda: self.session.generate(prompt, **options))

    def generate_logprobs(self, prompt: str = "", **options: Any) -> AsyncIterator[TokenLogprob]:
        """`Session.generate_logprobs`, by `async for`; see `generate`."""
        return self._each(lambda: self.session.generate_logprobs(prompt, **options))

    def reply(self, message: str, **options: Any) -> AsyncIterator[str]:
        """`Session.reply`, by `async for`; see `generate`."""
        return self._each(lambda: self.session.reply(message, **options))

    async def save(self) -> Ref:
        """`Session.save`."""
        return await self.call(Session.save)

    async def rewind(self, **goal: Any) -> None:
        """`Session.rewind`."""
        await self.call(lambda session: session.rewind(**goal))

    async def fork(self, branch: str | None = None, **options: Any) -> "AsyncSession":
        """`Session.fork`, as an independent `AsyncSession`."""
        return AsyncSession(await self.call(lambda session: session.fork(branch, **options)))

    async def close(self) -> None:
        """`Session.close`, after the calls that came before; safe to repeat."""
        async with self._turn:
            if not self.session.live.closed:
                await self._run(self.session.close)
            self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], T], stops: Iterable[Callable[[], None]] = ()) -> T:
        """Run work on the session's thread; a cancellation calls `stops` and waits for its end."""
        running = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            for stop in stops:
                stop()
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()  # what it raised, nobody waits for any more
            raise

    async def _each(self, begin: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        async with self._turn:
            pieces = await self._run(begin)
            ended = object()
            try:
                while (piece := await self._run(partial(next, pieces, ended))) is not ended:
                    yield piece
            finally:
                close = getattr(pieces, "close", None)
                if close is not None:
                    await self._run(close)


class _Pulled:
    """An asynchronous source for the session's thread, which waits while the loop makes a piece."""

    def __init__(self, source: AsyncIterable[str], loop: asyncio.AbstractEventLoop) -> None:
        self._iterator = aiter(source)
        self._loop = loop
        self._piece: Future[str | None] | None = None
        self._stopped = False
        self._lock = threading.Lock()  # no piece is asked for while it is stopped, nor after

    def stop(self) -> None:
        """End the call that reads it: its next piece is a `CancelledError`."""
        with self._lock:
            self._stopped = True
            if self._piece is not None:
                self._piece.cancel()

    def __iter__(self) -> Iterator[str]:
        while True:
            with self._lock:
                if self._stopped:
                    raise CancelledError
                self._piece = asyncio.run_coroutine_threadsafe(self._following(), self._loop)
            piece = self._piece.result()
            if piece is None:
                return
            yield piece

    async def _following(self) -> str | None:
        return await anext(self._iterator, None)
