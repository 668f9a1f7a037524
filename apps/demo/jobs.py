"""Background jobs: each in its own thread, cancelled when abandoned.

A job opens a session, follows its requests to the model's engine, and closes the session. Its
events go into a queue, from which the visitor's page is updated. A slow page therefore blocks
nobody, and closing the page cancels the requests, after which everything read until then is saved.
"""

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from streamlm.engine import Cancelled, Handle


class Job:
    """A job as its own thread sees it.

    Attributes:
        events: what the job has emitted.
    """

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._requests: set[Handle] = set()
        self._cancelled = False

    def emit(self, event: object) -> None:
        """Send an event to the page."""
        self.events.put(event)

    @contextmanager
    def request(self, handle: Handle) -> Iterator[Handle]:
        """Let a request be cancelled with the job, and at the end of the block if it goes on.

        It has ended after the block, and its session can be closed.
        """
        with self._guard:
            self._requests.add(handle)
            cancelled = self._cancelled
        if cancelled:
            handle.cancel()
        try:
            yield handle
        finally:
            handle.cancel()
            with suppress(Exception):  # of interest to the block only
                handle.result()
            with self._guard:
                self._requests.discard(handle)

    def result(self, handle: Handle) -> Any:
        """The result of a request, which is cancelled with the job."""
        with self.request(handle):
            return handle.result()

    def cancel(self) -> None:
        """Cancel the requests of the job, those to come too."""
        with self._guard:
            self._cancelled = True
            requests = list(self._requests)
        for handle in requests:
            handle.cancel()


class _End:
    """The last event of a job: its error, or None."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class Jobs:
    """All running jobs, by visitor."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._running: defaultdict[str, set[Job]] = defaultdict(set)

    def stream(self, work: Callable[[Job], object], *, visitor: str) -> Iterator[list[Any]]:
        """Run `work` in a thread and yield its events, in batches as they become available.

        Dropping the iterator cancels the job.

        Raises:
            Exception: whatever the work raises, except Cancelled, which ends the iteration.
        """
        job = Job()

        def main() -> None:
            end = _End()
            try:
                work(job)
            except BaseException as error:
                end = _End(error)
            with self._guard:
                self._running[visitor].discard(job)
                if not self._running[visitor]:
                    del self._running[visitor]
            job.emit(end)

        with self._guard:
            self._running[visitor].add(job)
        threading.Thread(target=main, name="streamlm job", daemon=True).start()
        try:
            while True:
                events = [job.events.get()]
                while not job.events.empty():
                    events.append(job.events.get())
                end = events.pop() if isinstance(events[-1], _End) else None
                if events:
                    yield events
                if end is not None:
                    if end.error is not None and not isinstance(end.error, Cancelled):
                        raise end.error
                    return
        finally:
            job.cancel()

    def runs(self, visitor: str) -> bool:
        """Whether a job of a visitor is running."""
        with self._guard:
            return visitor in self._running

    def cancel(self, visitor: str) -> bool:
        """Cancel all jobs of a visitor; True if there were any."""
        with self._guard:
            jobs = list(self._running.get(visitor, ()))
        for job in jobs:
            job.cancel()
        return bool(jobs)

    def shut_down(self, seconds: float = 30.0) -> None:
        """Cancel all jobs, and wait at most `seconds` until they have saved."""
        with self._guard:
            jobs = [job for jobs in self._running.values() for job in jobs]
        for job in jobs:
            job.cancel()
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            time.sleep(0.05)

    @property
    def running(self) -> int:
        """The number of running jobs."""
        with self._guard:
            return sum(map(len, self._running.values()))
