"""OneThread: a session is used by one thread at a time, and another one is told so.

Two threads that read into one stream would overwrite each other's text. Waiting would be no help:
in which order the texts are read would be left to chance.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class InUse(RuntimeError):
    """Another thread is using the session."""


class OneThread:
    """A guard that a thread may enter again while it is inside."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holder = "another"

    @contextmanager
    def use(self, action: str) -> Iterator[None]:
        """Keep other threads out of the block.

        Args:
            action: what the thread is about to do, for the message.

        Raises:
            InUse: another thread is inside; names it.
        """
        if not self._lock.acquire(blocking=False):
            raise InUse(
                f"cannot {action}: thread {self._holder!r} is using this session; allowed: one "
                "thread at a time, or an Engine, which takes requests from any"
            )
        try:
            self._holder = threading.current_thread().name
            yield
        finally:
            self._lock.release()

    def each(self, pieces: Iterator[T], action: str) -> Iterator[T]:
        """The pieces, each made while other threads are kept out.

        Raises:
            InUse: as `use`, when a piece is asked for.
        """
        while True:
            with self.use(action):
                try:
                    piece = next(pieces)
                except StopIteration:
                    return
            yield piece


class Guarded(Protocol):
    """What has a guard."""

    @property
    def one_thread(self) -> OneThread: ...


G = TypeVar("G", bound=Guarded)


def by_one_thread(
    method: Callable[Concatenate[G, P], T],
) -> Callable[Concatenate[G, P], T]:
    """Let one thread at a time call a method; others get `InUse`."""
    action = method.__name__

    @wraps(method)
    def guarded(self: G, *args: P.args, **options: P.kwargs) -> T:
        with self.one_thread.use(action):
            return method(self, *args, **options)

    return guarded
