"""Saving: where a session is kept, and what of it is not saved yet.

A commit is written by a thread of its own: waiting for a disk or a network costs no time in which
the model could read on. What is handed to the thread are immutable values.
"""

import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Any

import numpy as np

from memory_store import (
    Commit,
    Conflict,
    MemoryStore,
    Ref,
    Retention,
    Snapshot,
    StoreError,
)
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.runtime.text_stream import REPETITION_WINDOW, TextStream
from streamlm.sessions.recent_tokens import TokenLog
from streamlm.sessions.snapshots import stream_from_snapshot, stream_to_snapshot
from streamlm.sessions.sources import Reading


class _Writing:
    """A commit under way: by a thread, or by whoever waits for it before a thread has begun it.

    Who waits may be interrupted at any line, and wait again.
    """

    def __init__(self, commit: Callable[[], Ref], position: int, version: int) -> None:
        self.position = position
        self.version = version
        self.ref: Ref | None = None
        self.error: BaseException | None = None
        self._commit: Callable[[], Ref] | None = commit
        self._process = os.getpid()
        # Held by who commits. Who is interrupted just before letting go can still take it again.
        self._lock = threading.RLock()

    def run(self) -> None:
        """Commit, unless somebody else does."""
        if self._lock.acquire(blocking=False):
            try:
                self._do()
            finally:
                self._lock.release()

    def end(self) -> None:
        """Return when it is over; at once where a process that this was forked from does it."""
        if self._process == os.getpid():
            with self._lock:
                self._do()

    def _do(self) -> None:
        if self._commit is not None and self.ref is None and self.error is None:
            try:
                self.ref = self._commit()
            except BaseException as error:
                self.error = error
        self._commit = None  # and with it the snapshot, however long a thread's queue has this


class Keeping:
    """A session's branch in its store.

    Attributes:
        ref: the newest snapshot that is known to be saved, None before the first.
        version: which of the session's versions it is.
        log: the session's, with the ids since then at least.
        retention: which old states are kept; None keeps all.
    """

    def __init__(
        self,
        store: MemoryStore,
        branch: str,
        *,
        checkpoint: Checkpoint,
        seed: int,
        retention: Retention | None,
    ) -> None:
        self.store = store
        self.branch = branch
        self.ref: Ref | None = None
        self.version = 0
        self.log = TokenLog()
        self.retention = retention
        self._checkpoint = checkpoint
        self._seed = seed
        self._writing: _Writing | None = None
        # One thread for all commits: to begin one takes as long as a part of a segment.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="streamlm commit")

    @property
    def begun(self) -> int:
        """The position of the newest snapshot, saved or being saved."""
        if self._writing is not None:
            return self._writing.position
        return self.ref.position if self.ref is not None else 0

    def begin(self, stream: TextStream, reading: Reading | None, *, version: int) -> None:
        """Begin to commit a stream; `settle` tells how it ended.

        Args:
            stream: canonical; the ids that lead to it are in `log`.
            reading: a call of `feed` that is to be gone on with.
            version: the session's.
        """
        assert self._writing is None
        parent, position = self.ref, stream.position
        start = parent.position if parent is not None else 0
        snapshot = stream_to_snapshot(
            stream,
            self._checkpoint.model,
            tokens=self.log.take(start, position),
            attributes={"reading": reading.to_json() if reading else None},
        )

        def commit() -> Ref:
            before = parent
            if before is None and position:
                # The empty beginning is a snapshot too, so that every position can be rewound to.
                before = self._commit(self._empty(), None)
            ref = self._commit(snapshot, before)
            self._collect(ref)
            return ref

        # First noted, then begun: a commit that nobody knows of would stand in the way of the next.
        self._writing = _Writing(commit, position, version)
        with suppress(RuntimeError):  # the interpreter is ending: who waits for it does it
            self._thread.submit(self._writing.run)

    def _empty(self) -> Snapshot:
        stream = TextStream.begin(self._checkpoint, seed=self._seed)
        tokens = np.zeros(0, np.int32)
        model = self._checkpoint.model
        return stream_to_snapshot(stream, model, tokens=tokens, attributes={"reading": None})

    def settle(self) -> None:
        """Wait for the commit that was begun, if there is one, and note how it ended.

        Raises:
            StoreError: as `MemoryStore.commit`; all can be committed again.
        """
        writing = self._writing
        if writing is None:
            return
        writing.end()
        ref, version = writing.ref, writing.version
        if ref is None:
            ref, version = self.ref, self.version
            if not isinstance(writing.error, Conflict):
                with suppress(StoreError):
                    ref = self._got_through()
        self._writing, self.ref, self.version = None, ref, version
        if self.ref is not None:
            self.log.drop(self.ref.position)
        if writing.error is not None:
            raise writing.error

    def _got_through(self) -> Ref | None:
        """The head, if it is what was being committed when an error came up: what we read."""
        head, seq = self.store.head(self.branch), self.ref.seq if self.ref is not None else -1
        start = self.ref.position if self.ref is not None else 0
        if head is None or not (head.seq > seq and head.position >= start):
            return self.ref
        there = self.store.tokens(head, start, head.position)
        return head if np.array_equal(there, self.log.take(start, head.position)) else self.ref

    def close(self) -> None:
        """End the thread, after what it was given to do."""
        self._thread.shutdown()

    def settled(self) -> None:
        """`settle`, for those who need the store and not what was committed."""
        with suppress(StoreError):
            self.settle()

    def _commit(self, snapshot: Snapshot, parent: Ref | None) -> Ref:
        return self.store.commit(
            snapshot,
            branch=self.branch,
            parent=parent,
            fingerprints=self._checkpoint.fingerprints,
        )

    def _collect(self, ref: Ref) -> None:
        """Let go of old states now and then: the longer the history, the more rarely.

        Looking through the history takes a time in proportion to its length; so a commit's share
        of it stays the same. Where there are no locks (object storage), nothing is collected
        unasked: somebody might begin a branch at an old state at that very moment.
        """
        if self.retention is None or self.store.remote:
            return
        if not collection_is_due(ref.seq, self.retention):
            return
        try:
            self.store.gc(self.retention)
        except StoreError as error:  # what was read is saved; this must not keep anybody from it
            warnings.warn(f"old states are kept: {error}", RuntimeWarning, stacklevel=2)

    # -- reading back -----------------------------------------------------------------------------

    def ids(self, start: int, stop: int) -> np.ndarray:
        """The token ids at [start, stop), saved or not, int32."""
        saved = self.ref.position if self.ref is not None else 0
        unsaved = self.log.take(max(start, saved), stop)
        if self.ref is None or start >= saved:
            return unsaved
        there = self.store.tokens(self.ref, start, min(stop, saved))
        return np.concatenate([there, unsaved])

    def load(self, source: Ref | Commit) -> tuple[TextStream, Reading | None]:
        """The stream that was committed, and the call of `feed` to go on with."""
        snapshot = self.store.load(source, fingerprints=self._checkpoint.fingerprints)
        reading: Any = snapshot.attributes["reading"]
        start = max(0, snapshot.position - REPETITION_WINDOW)
        recent = self.store.tokens(source, start, snapshot.position)
        stream = stream_from_snapshot(snapshot, self._checkpoint.model, recent=recent)
        return stream, Reading(**reading) if reading else None

    def before(self, position: int, length: int) -> tuple[TextStream, np.ndarray]:
        """A stream some `length` tokens before the newest snapshot, and the ids read since then.

        Args:
            position: where the session stands.
        """
        self.settled()
        if self.ref is None:
            return TextStream.begin(self._checkpoint, seed=self._seed), self.log.take(0, position)
        commit = self.store.nearest(self.ref, max(0, self.ref.position - length))
        ids = self.store.tokens(self.ref, commit.position, self.ref.position)
        unsaved = self.log.take(self.ref.position, position)
        return self.load(commit)[0], np.concatenate([ids, unsaved])

    # -- going back -------------------------------------------------------------------------------

    def way_to(self, head: Ref, position: int) -> tuple[Commit, np.ndarray]:
        """The nearest snapshot before a position, and the ids that lead from there to it.

        Raises:
            ValueError: it lies behind `head`, or before the beginning.
        """
        if not 0 <= position <= head.position:
            raise ValueError(f"tokens = {position}; allowed: 0 to {head.position}")
        commit = self.store.nearest(head, position)
        return commit, self.store.tokens(head, commit.position, position)

    def snapshot_at(self, snapshot: Ref | int | None, time: datetime | float | None) -> Ref:
        """The entry of the branch's history that a caller means, by itself or by a time.

        Raises:
            ValueError: there is none; says what there is.
        """
        refs = self.store.refs(self.branch)
        if time is not None:
            seconds = time.timestamp() if isinstance(time, datetime) else time
            before = [ref for ref in refs if ref.created <= seconds]
            if not before:
                first = datetime.fromtimestamp(refs[0].created).astimezone()
                raise ValueError(f"time = {time}; allowed: {first.isoformat()} or later")
            return before[-1]
        seq = snapshot.seq if isinstance(snapshot, Ref) else snapshot
        found = {ref.seq: ref for ref in refs}.get(-1 if seq is None else seq)
        if found is None or (isinstance(snapshot, Ref) and snapshot != found):
            allowed = f"0 to {len(refs) - 1}, or an entry of history()"
            raise ValueError(f"snapshot = {snapshot}; allowed: {allowed}")
        return found


def collection_is_due(seq: int, retention: Retention) -> bool:
    """Whether old states are let go of after snapshot `seq` of a branch: 16 times a doubling."""
    rarely = max(retention.last or 0, 1 << (seq // 16).bit_length(), 16)
    return not (seq + 1) % rarely
