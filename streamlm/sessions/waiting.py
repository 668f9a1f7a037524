"""Saves while a call of `feed` waits for text that somebody has yet to write."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

from memory_store import StoreError
from streamlm.sessions.live import LiveStream


class SavingWhileWaiting:
    """A thread that saves a stream when a save is due by time, in the blocks of `waiting` only.

    The thread begins with the first of these blocks. Without a store, or without `save_seconds`,
    there is none.
    """

    def __init__(self, live: LiveStream) -> None:
        self._live = live
        self._ended = threading.Event()
        # Held by whoever may change the stream: the reading thread, except while it waits.
        self._turn = threading.Lock()
        self._held = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._take()
        return self

    def _take(self) -> None:
        self._turn.acquire()
        self._held = True  # it is not if an interruption comes before

    def _give(self) -> None:
        if self._held:
            self._held = False
            self._turn.release()

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._give()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block in which the caller leaves the stream alone."""
        seconds = self._live.save_seconds
        if self._live.store is None or seconds is None:
            yield
            return
        if self._thread is None:
            name = f"streamlm saving for {threading.current_thread().name}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()
        self._give()
        try:
            yield
        finally:
            self._take()

    def _run(self) -> None:
        live = self._live
        while not self._ended.wait(self._seconds_left()):
            with self._turn:
                # What fails is reported by the next save of the reading thread.
                if not self._ended.is_set() and live.time_is_due():
                    with suppress(StoreError):
                        live.save_when_idle()

    def _seconds_left(self) -> float:
        """Seconds until the next look: when a save is due, or a while later if nothing was read."""
        live = self._live
        if live.store is None or live.save_seconds is None:
            return 1.0
        return max(live.save_seconds - live.store.idle_seconds(), min(live.save_seconds, 1.0), 0.01)
