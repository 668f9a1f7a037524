"""Handle: what the caller of a request holds, an iterator of its events in any thread."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any


class Cancelled(Exception):
    """The request was cancelled, or the engine was stopped."""


class Handle:
    """A request that waits, runs or has ended.

    Iterate over it, with `for` or `async for`, to get its events: pieces of text, log-probabilities
    or reports. `result` waits for its end. One consumer may iterate.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: deque[Any] = deque()
        self._wakers: list[Callable[[], None]] = []
        self._ended = False
        self._result: Any = None
        self._error: BaseException | None = None
        self._cancel: Callable[[], None] | None = None
        self.cancelled = False

    # -- for the caller ---------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether the request has ended; events may be left."""
        return self._ended

    def cancel(self) -> None:
        """End the request soon. What was read and generated until then is kept and saved."""
        self.cancelled = True
        if self._cancel is not None:
            self._cancel()

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end, and return the result.

        Args:
            timeout: in seconds; None waits without end.

        Raises:
            TimeoutError: it has not ended by then.
            Exception: whatever ended the request; `Cancelled` if it was cancelled.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended, timeout):
                raise TimeoutError(f"the request has not ended after {timeout} seconds")
        if self._error is not None:
            raise self._error
        return self._result

    def __iter__(self) -> Iterator[Any]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._events or self._ended)
                if not self._events:
                    break
                event = self._events.popleft()
            yield event
        self.result()

    async def __aiter__(self) -> AsyncIterator[Any]:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(changed.set)

        with self._changed:
            self._wakers.append(wake)
        try:
            while True:
                changed.clear()
                with self._changed:
                    events, ended = list(self._events), self._ended
                    self._events.clear()
                for event in events:
                    yield event
                if ended and not events:
                    break
                if not events:
                    await changed.wait()
        finally:
            with self._changed:
                self._wakers.remove(wake)
        self.result()

    async def ended(self) -> None:
        """Wait for the end, however it comes; events that were not fetched are dropped."""
        try:
            async for _ in self:
                pass
        except BaseException as error:
            if error is not self._error:  # the caller's own, such as its cancellation
                raise

    # -- for the engine ---------------------------------------------------------------------------

    def on_cancel(self, call: Callable[[], None]) -> None:
        """What `cancel` calls."""
        self._cancel = call

    def emit(self, event: Any, *, newest_only: bool = False) -> None:
        """Send an event.

        Args:
            newest_only: drop those that were not fetched yet.
        """
        with self._changed:
            if newest_only:
                self._events.clear()
            self._events.append(event)
            self._wake()

    def end(self, result: Any, error: BaseException | None) -> None:
        """End the request."""
        with self._changed:
            self._result, self._error, self._ended = result, error, True
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        for wake in self._wakers:
            wake()
