"""Work that takes a while: in threads of its own, in turns, and stopped when nobody wants it.

A visitor's reading is a thread that owns its session from opening to closing. What it finds out
goes into a queue that the visitor's page is fed from. So a slow page holds nobody up, and a page
that is closed ends its work at the next boundary, with everything read until then saved.
"""

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

SLICE = 0.1  # seconds that a turn lasts, at least, while others wait


class Stopped(Exception):
    """The visitor has stopped the work, or is gone."""


class Turns:
    """A lock that is given out in the order of asking, so that no visitor waits for ever."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asked = 0
        self._served = 0

    def take(self) -> None:
        """Wait for one's turn."""
        with self._changed:
            mine = self._asked
            self._asked += 1
            self._changed.wait_for(lambda: self._served == mine)

    def give(self) -> None:
        """Let the next one have its turn."""
        with self._changed:
            self._served += 1
            self._changed.notify_all()


@dataclass(eq=False)
class Job:
    """One piece of work, seen from within its thread."""

    turns: Turns
    news: "queue.SimpleQueue[Any]" = field(default_factory=queue.SimpleQueue)
    stop: threading.Event = field(default_factory=threading.Event)
    since: float = 0.0  # when the turn began

    def tell(self, item: object) -> None:
        """Let the page know something."""
        self.news.put(item)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Use the model: the others wait.

        Raises:
            Stopped: the work was stopped meanwhile.
        """
        self._take()
        try:
            self.check()
            yield
        finally:
            self.turns.give()

    def pass_turn(self) -> None:
        """Within a turn: let those who wait go first, if it has lasted long enough.

        A token is written much faster than a block is read; in time, both get the same.

        Raises:
            Stopped: the work was stopped; the turn is still held.
        """
        self.check()
        if time.monotonic() - self.since >= SLICE:
            self.turns.give()
            self._take()
            self.check()

    def _take(self) -> None:
        self.turns.take()
        self.since = time.monotonic()

    def check(self) -> None:
        """Raise Stopped if the work is not wanted any more."""
        if self.stop.is_set():
            raise Stopped


class _End:
    """The last item of a job: what it returned, or why it failed."""

    def __init__(self, result: object = None, error: BaseException | None = None) -> None:
        self.result, self.error = result, error


class Jobs:
    """The work that is under way, by visitor."""

    def __init__(self) -> None:
        self.turns = Turns()
        self._lock = threading.Lock()
        self._running: defaultdict[str, set[Job]] = defaultdict(set)

    def run(self, work: Callable[[Job], object], *, visitor: str) -> Iterator[list[Any]]:
        """Do `work` in a thread; gives what it tells, all that there is at a time.

        If the iterator is dropped, the work is stopped.

        Raises:
            Whatever the work raises, but for Stopped, which ends it quietly.
        """
        job = Job(self.turns)

        def main() -> None:
            try:
                end = _End(work(job))
            except BaseException as error:
                end = _End(error=error)
            with self._lock:
                self._running[visitor].discard(job)
                if not self._running[visitor]:
                    del self._running[visitor]
            job.tell(end)

        with self._lock:
            self._running[visitor].add(job)
        threading.Thread(target=main, name="streamlm demo", daemon=True).start()
        try:
            while True:
                items = [job.news.get()]
                while not job.news.empty():
                    items.append(job.news.get())
                end = items[-1] if isinstance(items[-1], _End) else None
                told = items[:-1] if end is not None else items
                if told:
                    yield told
                if end is not None:
                    if end.error is not None and not isinstance(end.error, Stopped):
                        raise end.error
                    return
        finally:
            job.stop.set()

    def do(self, work: Callable[[Job], Any], *, visitor: str) -> Any:
        """Do `work` in one turn, in this thread; gives what it returns."""
        job = Job(self.turns)
        with job.turn():
            return work(job)

    def stop(self, visitor: str) -> bool:
        """Stop all of a visitor's work; was there any?"""
        with self._lock:
            jobs = list(self._running.get(visitor, ()))
        for job in jobs:
            job.stop.set()
        return bool(jobs)

    def end(self, seconds: float = 30.0) -> None:
        """Stop all work, and wait until it is saved."""
        with self._lock:
            jobs = [job for jobs in self._running.values() for job in jobs]
        for job in jobs:
            job.stop.set()
        until = time.monotonic() + seconds
        while self.running and time.monotonic() < until:
            time.sleep(0.05)

    @property
    def running(self) -> int:
        """Pieces of work under way."""
        with self._lock:
            return sum(map(len, self._running.values()))
