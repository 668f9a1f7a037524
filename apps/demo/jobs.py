"""Background jobs: each in its own thread, taking turns at the model, cancelled when abandoned.

A job owns its session from opening to closing and puts its events into a queue, from which the
visitor's page is updated. A slow page therefore blocks nobody, and closing the page cancels the
job at the next boundary, after everything read until then is saved.
"""

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

TIME_SLICE = 0.1  # seconds that a turn lasts, at least, while others wait


class Cancelled(Exception):
    """The visitor stopped the job, or left."""


class FairLock:
    """A lock granted in the order of requests, so that no visitor starves."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._requested = 0
        self._released = 0

    def acquire(self) -> None:
        """Wait for this thread's turn."""
        with self._changed:
            ticket = self._requested
            self._requested += 1
            self._changed.wait_for(lambda: self._released == ticket)

    def release(self) -> None:
        """Let the next thread proceed."""
        with self._changed:
            self._released += 1
            self._changed.notify_all()


@dataclass(eq=False)
class Job:
    """A job as its own thread sees it.

    Attributes:
        lock: guards the model, across all jobs; events: what the job has emitted.
        cancel: set when the job should end; turn_started: a monotonic time in seconds.
    """

    lock: FairLock
    events: "queue.SimpleQueue[Any]" = field(default_factory=queue.SimpleQueue)
    cancel: threading.Event = field(default_factory=threading.Event)
    turn_started: float = 0.0

    def emit(self, event: object) -> None:
        """Send an event to the page."""
        self.events.put(event)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the model while the other jobs wait.

        Raises:
            Cancelled: the job was cancelled meanwhile.
        """
        self._acquire()
        try:
            self.check_cancelled()
            yield
        finally:
            self.lock.release()

    def yield_turn(self) -> None:
        """Within a turn: let waiting jobs go first, once the time slice is used up.

        Jobs share the model by time, not by step: writing a token is much faster than reading a
        block.

        Raises:
            Cancelled: the job was cancelled; it still holds the turn.
        """
        self.check_cancelled()
        if time.monotonic() - self.turn_started >= TIME_SLICE:
            self.lock.release()
            self._acquire()
            self.check_cancelled()

    def _acquire(self) -> None:
        self.lock.acquire()
        self.turn_started = time.monotonic()

    def check_cancelled(self) -> None:
        """Raise Cancelled if the job was cancelled."""
        if self.cancel.is_set():
            raise Cancelled


class _End:
    """The last event of a job: its error, or None."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class Jobs:
    """All running jobs, by visitor."""

    def __init__(self) -> None:
        self.lock = FairLock()
        self._guard = threading.Lock()
        self._running: defaultdict[str, set[Job]] = defaultdict(set)

    def stream(self, work: Callable[[Job], object], *, visitor: str) -> Iterator[list[Any]]:
        """Run `work` in a thread and yield its events, in batches as they become available.

        Dropping the iterator cancels the job.

        Raises:
            Exception: whatever the work raises, except Cancelled, which ends the iteration.
        """
        job = Job(self.lock)

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
            job.cancel.set()

    def run(self, work: Callable[[Job], Any], *, visitor: str) -> Any:
        """Run `work` in this thread, in one turn, and return its result."""
        job = Job(self.lock)
        with job.turn():
            return work(job)

    def runs(self, visitor: str) -> bool:
        """Whether a job of a visitor is running."""
        with self._guard:
            return visitor in self._running

    def cancel(self, visitor: str) -> bool:
        """Cancel all jobs of a visitor; True if there were any."""
        with self._guard:
            jobs = list(self._running.get(visitor, ()))
        for job in jobs:
            job.cancel.set()
        return bool(jobs)

    def shut_down(self, seconds: float = 30.0) -> None:
        """Cancel all jobs, and wait at most `seconds` until they have saved."""
        with self._guard:
            jobs = [job for jobs in self._running.values() for job in jobs]
        for job in jobs:
            job.cancel.set()
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            time.sleep(0.05)

    @property
    def running(self) -> int:
        """The number of running jobs."""
        with self._guard:
            return sum(map(len, self._running.values()))
