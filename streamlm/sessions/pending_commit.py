"""Pending commits, and the threads that make them."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from memory_store import Ref

COMMITTERS = 4  # commits that run at once


@cache
def committers() -> ThreadPoolExecutor:
    """The threads that commit, for all sessions of this process.

    They are kept: starting one takes as long as reading part of a segment.
    """
    return ThreadPoolExecutor(COMMITTERS, thread_name_prefix="streamlm commit")


if hasattr(os, "register_at_fork"):  # a forked child has none of its parent's threads
    os.register_at_fork(after_in_child=committers.cache_clear)


class PendingCommit:
    """A commit that has been started but not accounted for.

    It runs on the worker thread, or on the first thread that waits for it. A waiting thread may be
    interrupted at any line and wait again.

    Attributes:
        position, version: of the session that it saves.
        ref: the new snapshot, once it is written; error: why it was not.
    """

    def __init__(self, commit: Callable[[], Ref], position: int, version: int) -> None:
        self.position = position
        self.version = version
        self.ref: Ref | None = None
        self.error: BaseException | None = None
        self._commit: Callable[[], Ref] | None = commit
        self._process = os.getpid()
        # Held by the committing thread. It is reentrant, so that a thread interrupted just before
        # releasing it can take it again.
        self._lock = threading.RLock()

    @property
    def done(self) -> bool:
        """Whether the commit has ended."""
        return self.ref is not None or self.error is not None

    def run(self) -> None:
        """Commit, unless another thread is doing so."""
        if self._lock.acquire(blocking=False):
            try:
                self._commit_once()
            finally:
                self._lock.release()

    def wait(self) -> None:
        """Return once the commit has ended; in a forked child at once, as the parent commits."""
        if self._process == os.getpid():
            with self._lock:
                self._commit_once()

    def _commit_once(self) -> None:
        if self._commit is not None and self.ref is None and self.error is None:
            try:
                self.ref = self._commit()
            except BaseException as error:
                self.error = error
        self._commit = None  # frees the snapshot, which the thread's queue may hold for long
