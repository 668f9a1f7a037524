"""Saving: the branch of a store that a session is saved to, and what of it is not saved yet.

Worker threads write the commits, so the model reads on while a disk or a network is busy. They are
given immutable values only. The file is long because one class saves a branch and finds it again.
"""

import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np

from memory_store import (
    Commit,
    Conflict,
    Corrupt,
    Locked,
    LogRows,
    MemoryStore,
    NotFound,
    Ref,
    Retention,
    Snapshot,
    StoreError,
)
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.config import is_whole
from streamlm.runtime.text_stream import REPETITION_WINDOW, TextStream
from streamlm.sessions.archive import Archive
from streamlm.sessions.pending_commit import PendingCommit, committers
from streamlm.sessions.recent_tokens import TokenLog
from streamlm.sessions.snapshots import stream_from_snapshot, stream_to_snapshot
from streamlm.sessions.sources import FeedCursor
from tokenizer.stream import StreamDecoder, StreamEncoder

# What a forged or a foreign state raises where it is put together.
NO_STATE = (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError)
SETTLING = 0.1  # seconds; longer than it takes to create the ref of a commit that is written


class SessionStore:
    """A session's branch in a store.

    It holds the branch's writer lock until it is closed.

    Args:
        seed: of the random generator at the beginning of the stream.
        retention: which old snapshots stay loadable; None keeps all.
        readonly: take no lock.
        discard_empty: delete the store on closing if it has no commit by then.
        archive: keys to save with the tokens; None for none.

    Attributes:
        saved: the newest snapshot known to be saved, None before the first.
        version: the version of the session that `saved` holds.
        log: the session's token log, with at least the ids since `saved`.

    Raises:
        memory_store.Locked: another process writes to this branch.
    """

    def __init__(
        self,
        store: MemoryStore,
        branch: str,
        *,
        checkpoint: Checkpoint,
        seed: int,
        retention: Retention | None,
        readonly: bool = False,
        discard_empty: bool = False,
        archive: Archive | None = None,
    ) -> None:
        self.store = store
        self.branch = branch
        self.saved: Ref | None = None
        self.version = 0
        self.log = TokenLog()
        self.retention = retention
        self._checkpoint = checkpoint
        self._archive = archive
        self._seed = seed
        self._pending: PendingCommit | None = None
        self._newest_at = time.monotonic()
        self._resources = ExitStack()
        if discard_empty:
            self._resources.callback(self._discard_empty)
        if not readonly:
            try:
                self._resources.enter_context(store.writer(branch))
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Finish the commit that was started, and release the lock."""
        if self._pending is not None:
            self._pending.wait()
        self._resources.close()

    def _discard_empty(self) -> None:
        if self.saved is None:
            # Another process may have begun a session here since.
            with suppress(Locked), self.store.writer():
                if not self.store.branches():
                    self.store.delete()

    # -- committing -------------------------------------------------------------------------------

    @property
    def newest_position(self) -> int:
        """The position of the newest snapshot, saved or pending."""
        if self._pending is not None:
            return self._pending.position
        return self.saved.position if self.saved is not None else 0

    def idle_seconds(self) -> float:
        """Seconds since the newest commit was started, or since the session was opened."""
        return time.monotonic() - self._newest_at

    def begin_commit(self, stream: TextStream, cursor: FeedCursor | None, *, version: int) -> None:
        """Start to commit a stream; `settle` reports the outcome.

        Args:
            stream: canonical; the ids that lead to it are in `log`.
            cursor: of a call of `feed` to be resumed.
            version: the session's.
        """
        assert self._pending is None
        parent, position = self.saved, stream.position
        start = parent.position if parent is not None else 0
        snapshot = stream_to_snapshot(
            stream,
            self._checkpoint.model,
            tokens=self.log.take(start, position),
            attributes={"reading": cursor.to_json() if cursor else None},
        )
        if self._archive is not None:
            snapshot = replace(snapshot, logs=self._archive.rows(stream.state, start))

        # The empty beginning is a snapshot too: any position can be rewound to. Made here: threads
        # that commit do not use the model.
        empty = self._empty() if parent is None and position else None

        def commit() -> Ref:
            before = parent if empty is None else self._commit(empty, None)
            ref = self._commit(snapshot, before)
            self._collect_garbage(ref)
            return ref

        self._newest_at = time.monotonic()
        # Recorded first, then started: an unrecorded commit would conflict with the next one.
        self._pending = PendingCommit(commit, position, version)
        try:
            committers().submit(self._pending.run)
        except RuntimeError:  # the interpreter is ending, and starts no thread any more
            self._pending.run()

    def fill_log(
        self,
        stream: TextStream,
        cursor: FeedCursor | None,
        logs: Mapping[str, LogRows],
        *,
        version: int,
    ) -> None:
        """Commit the saved stream once more, with rows of logs that no commit before has.

        Args:
            stream, cursor: as they were saved last; version: the session's.

        Raises:
            StoreError: as `settle`.
        """
        assert self._pending is None and self.saved is not None
        parent, model = self.saved, self._checkpoint.model
        snapshot = stream_to_snapshot(
            stream,
            model,
            tokens=np.zeros(0, np.int32),
            attributes={"reading": cursor.to_json() if cursor else None},
        )
        snapshot = replace(snapshot, logs=logs)

        def commit() -> Ref:
            ref = self._commit(snapshot, parent)
            self._collect_garbage(ref)
            return ref

        self._pending = PendingCommit(commit, stream.position, version)
        self.settle()

    def _empty(self) -> Snapshot:
        stream = TextStream.begin(self._checkpoint, seed=self._seed)
        tokens = np.zeros(0, np.int32)
        model = self._checkpoint.model
        return stream_to_snapshot(stream, model, tokens=tokens, attributes={"reading": None})

    @property
    def committing(self) -> bool:
        """Whether a commit was started and has not ended: `settle` would wait."""
        return self._pending is not None and not self._pending.done

    def settle(self) -> None:
        """Wait for the pending commit, if any, and record its outcome.

        Raises:
            StoreError: as `MemoryStore.commit`; everything can be committed again.
        """
        pending = self._pending
        if pending is None:
            return
        pending.wait()
        ref, version = pending.ref, pending.version
        if ref is None:
            ref, version = self.saved, self.version
            if not isinstance(pending.error, Conflict):
                with suppress(StoreError):
                    ref = self._committed_head()
        self._pending, self.saved, self.version = None, ref, version
        if self.saved is not None:
            self.log.drop(self.saved.position)
            if self._archive is not None:
                self._archive.drop(self.saved.position)
        if pending.error is not None:
            raise pending.error

    def try_settle(self) -> None:
        """`settle`, ignoring a failed commit: for callers that need the store, not the commit."""
        with suppress(StoreError):
            self.settle()

    def _committed_head(self) -> Ref | None:
        """The snapshot saved after a commit failed: the head, if it holds this session's tokens.

        A commit may fail after its head has become visible.
        """
        head, seq = self.store.head(self.branch), self.saved.seq if self.saved is not None else -1
        start = self.saved.position if self.saved is not None else 0
        if head is None or not (head.seq > seq and head.position >= start):
            return self.saved
        stored = self.store.tokens(head, start, head.position)
        return head if np.array_equal(stored, self.log.take(start, head.position)) else self.saved

    def _commit(self, snapshot: Snapshot, parent: Ref | None) -> Ref:
        return self.store.commit(
            snapshot,
            branch=self.branch,
            parent=parent,
            fingerprints=self._checkpoint.fingerprints,
        )

    def _collect_garbage(self, ref: Ref) -> None:
        """Delete old snapshots from time to time, more rarely the longer the history.

        A collection takes time in proportion to the history, so its share of each commit stays
        constant. Object storage has no locks, so nothing is collected there automatically: another
        process might be starting a branch at an old snapshot.
        """
        if self.retention is None or self.store.remote:
            return
        if not gc_is_due(ref.seq, self.retention):
            return
        try:
            self.store.gc(self.retention)
        except StoreError as error:  # the commit itself has succeeded
            warnings.warn(f"old snapshots were not deleted: {error}", RuntimeWarning, stacklevel=2)

    def newest(self, *, readonly: bool) -> Ref | None:
        """The head of the branch; says so if commits after it are not reached by any ref.

        Unless the session is read-only, they are taken up where it is plain that they belong here:
        a writer was killed before it could create their refs, or the refs were lost.

        Raises:
            Corrupt: the branch "main" has lost its refs, and cannot be continued before `recover`.
        """
        if readonly:
            taken, left = 0, self.store.continuing(self.branch)
            if left:  # or they were just being written
                time.sleep(SETTLING)
                left = self.store.continuing(self.branch)
        else:
            result = self.store.take_up(self.branch)
            taken, left = len(result.refs), list(result.left)
        head = self.store.head(self.branch)
        if taken and head is not None:
            self._say(f"no ref led to {_snapshots(taken)}; restored, at token {head.position:,}")
        if left:
            at = 0 if head is None else head.position
            self._say(
                f"no ref leads to {_snapshots(len(left))} after token {at:,}: refs are lost, or a "
                "writer was killed; `streamlm sessions recover` restores them"
            )
        return head

    def _say(self, what: str) -> None:
        name = getattr(self.store, "name", "session")
        warnings.warn(f"{name}: branch {self.branch!r}: {what}", RuntimeWarning, stacklevel=3)

    # -- reading back -----------------------------------------------------------------------------

    def _newest_ids(self, source: Ref | Commit, position: int) -> np.ndarray:
        """The ids that the repetition penalty applies to; fewer if `gc` deleted older ones."""
        low, high = max(0, position - REPETITION_WINDOW), position
        start = low
        while True:
            try:
                ids = self._ids(source, start, position)
            except NotFound:
                low = start + 1
            else:
                if start == low:
                    return ids
                high = start
            start = (low + high) // 2

    def _ids(self, source: Ref | Commit, start: int, stop: int) -> np.ndarray:
        """Stored token ids, int32; Corrupt if one is not of the vocabulary."""
        ids = self.store.tokens(source, start, stop)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self._checkpoint.model.config.vocab_size:
            place = getattr(self.store, "name", "the store")
            raise Corrupt(
                f"{place}: the tokens {start} to {stop} are not of this vocabulary. Open it with "
                "the version that wrote it."
            )
        return ids

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """The token ids at [start, stop), saved or not, int32."""
        saved = self.saved.position if self.saved is not None else 0
        unsaved = self.log.take(max(start, saved), stop)
        if self.saved is None or start >= saved:
            return unsaved
        stored = self._ids(self.saved, start, min(stop, saved))
        return np.concatenate([stored, unsaved])

    def load(self, source: Ref | Commit) -> tuple[TextStream, FeedCursor | None]:
        """The stream of a commit, and the cursor of the `feed` that it interrupted, if any.

        Raises:
            memory_store.Corrupt: also if the snapshot is sound, but holds no state of a session.
        """
        snapshot = self.store.load(source, fingerprints=self._checkpoint.fingerprints)
        recent = self._newest_ids(source, snapshot.position)
        tokenizer = self._checkpoint.tokenizer
        try:
            cursor: Any = snapshot.attributes["reading"]
            stream = stream_from_snapshot(snapshot, self._checkpoint.model, recent=recent)
            StreamEncoder(tokenizer, state=stream.tail)
            StreamDecoder(tokenizer, state=stream.cut)
            stream.generator()
            return stream, FeedCursor.from_json(cursor) if cursor else None
        except NO_STATE as error:
            place = getattr(self.store, "name", "the store")
            raise Corrupt(
                f"{place}: branch {self.branch!r} does not hold a state of this kind of session "
                f"({error!r}). Open it with the version that wrote it."
            ) from error

    def replay(self, head: Ref, start: int, stop: int) -> tuple[TextStream, np.ndarray]:
        """The stream at the last snapshot at or before `start`, and the ids from there to `stop`.

        Args:
            head: a snapshot at or after `stop`.
        """
        commit = self.store.nearest(head, max(0, start))
        return self.load(commit)[0], self._ids(head, commit.position, stop)

    def replay_recent(self, position: int, length: int) -> tuple[TextStream, np.ndarray]:
        """`replay` from `length` tokens before the newest snapshot to the session's `position`."""
        self.try_settle()
        if self.saved is None:
            return TextStream.begin(self._checkpoint, seed=self._seed), self.log.take(0, position)
        end = self.saved.position
        stream, ids = self.replay(self.saved, end - length, end)
        return stream, np.concatenate([ids, self.log.take(end, position)])

    # -- rewinding --------------------------------------------------------------------------------

    def path_to(self, head: Ref, position: int) -> tuple[Commit, np.ndarray]:
        """The nearest snapshot at or before a position, and the ids from there to the position.

        Raises:
            ValueError: the position is negative, or after `head`.
        """
        if not is_whole(position) or not 0 <= position <= head.position:
            raise ValueError(f"position {position}; allowed: 0 to {head.position}")
        commit = self.store.nearest(head, position)
        return commit, self._ids(head, commit.position, position)

    def find(self, snapshot: Ref | int | None, time: datetime | float | None) -> Ref:
        """The entry of the branch's history given by itself, by its number or by a time.

        Raises:
            ValueError: there is no such entry; lists what is allowed.
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


def _snapshots(n: int) -> str:
    return "1 snapshot" if n == 1 else f"{n} snapshots"


def gc_is_due(seq: int, retention: Retention) -> bool:
    """Whether to collect garbage after snapshot `seq` of a branch.

    As often as every 16 snapshots, and then about 128 times per doubling of their number.
    """
    interval = max(retention.newest or 0, 1 << (seq // 128).bit_length(), 16)
    return not (seq + 1) % interval
