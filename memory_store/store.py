"""The memory store on any backend: one format, one history and one set of rules for all media."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from memory_store.backend import Backend
from memory_store.errors import StoreError, os_errors
from memory_store.format.header import Header, read_header
from memory_store.format.names import branch_folder
from memory_store.history import walk
from memory_store.history.loading import load_snapshot, snapshot_deleted
from memory_store.history.logs import Logs
from memory_store.history.pins import add_pin, all_pins, check_pins, pinned, remove_pin
from memory_store.history.reading import Commits
from memory_store.history.refs import Refs, no_branch
from memory_store.history.unreferenced import continuing, unreferenced
from memory_store.history.writing import commit_snapshot
from memory_store.protocol import MemoryStore
from memory_store.types import (
    JSON,
    Collected,
    Commit,
    Recovered,
    Ref,
    Retention,
    Snapshot,
    TakenUp,
    Verified,
)
from memory_store.upkeep.branches import delete_branch
from memory_store.upkeep.gc import GRACE, collect
from memory_store.upkeep.recovery import recover
from memory_store.upkeep.taking_up import take_up
from memory_store.upkeep.verify import verify


class Store:
    """One session on a backend; `protocol.MemoryStore` documents the methods."""

    def __init__(self, backend: Backend, header: Header) -> None:
        self._backend = backend
        self._header = header
        self._refs = Refs(backend)
        self._commits = Commits(backend, header.session)
        self._logs = Logs(self._commits)

    @property
    def name(self) -> str:
        """The session's path or URL."""
        return self._backend.name()

    @property
    def session(self) -> str:
        """The session's id, 32 hex digits."""
        return self._header.session

    @property
    def attributes(self) -> Mapping[str, JSON]:
        """The attributes given at creation."""
        return self._header.attributes

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """The fingerprints given at creation."""
        return self._header.fingerprints

    @property
    def remote(self) -> bool:
        """Whether the medium is a network service without locks; see `gc`."""
        return self._backend.remote

    def branches(self) -> list[str]:
        """The branches that have a head, sorted."""
        return self._refs.branches()

    def head(self, branch: str) -> Ref | None:
        """The newest ref of a branch, or None."""
        return self._refs.head(branch)

    def refs(self, branch: str) -> list[Ref]:
        """The history of a branch, oldest first."""
        return self._refs.all(branch)

    def commit(
        self,
        snapshot: Snapshot,
        *,
        branch: str = "main",
        parent: Ref | None,
        fingerprints: Mapping[str, str] | None = None,
    ) -> Ref:
        """Write a snapshot and move the branch from `parent` to it; see `MemoryStore.commit`."""
        # The lock keeps `gc` from what is written, and the session from being deleted meanwhile.
        with os_errors("committing", self.name), self._backend.commits_lock(exclusive=False):
            if parent is None:
                self._check_same_session()
            return commit_snapshot(
                snapshot,
                self._commits,
                self._refs,
                branch=branch,
                parent=parent,
                fingerprints=self.fingerprints if fingerprints is None else fingerprints,
            )

    def _check_same_session(self) -> None:
        """Refuse to begin a branch in a session that was created in place of this one."""
        found = read_header(self._backend).session
        if found != self.session:
            raise StoreError(
                f"{self.name}: another session now: {found[:12]}…, not {self.session[:12]}…; "
                "this one was deleted. Open it again."
            )

    def load(
        self,
        ref: Ref | Commit,
        *,
        fingerprints: Mapping[str, str] | None = None,
        allow_mismatch: bool = False,
    ) -> Snapshot:
        """The snapshot at `ref`, bit for bit; see `MemoryStore.load`."""
        return load_snapshot(
            self._commits,
            _commit(ref),
            fingerprints=None if allow_mismatch else fingerprints,
        )

    def fingerprints_of(self, ref: Ref | Commit) -> Mapping[str, str]:
        """The fingerprints recorded with a commit."""
        return self._commits.read(_commit(ref)).fingerprints

    def attributes_of(self, ref: Ref | Commit) -> Mapping[str, JSON]:
        """The attributes of a snapshot; see `MemoryStore.attributes_of`."""
        return self._commits.read(_commit(ref)).state

    def publish(self, ref: Ref | Commit, *, branch: str) -> Ref:
        """Make the commit at `ref` the head of `branch`; see `MemoryStore.publish`."""
        commit = _commit(ref)
        with self._backend.commits_lock(exclusive=False):
            self._check_loadable(commit)
            head = self.head(branch)
            with os_errors("moving the branch", self.name):
                seq = head.seq + 1 if head else 0
                return self._refs.publish(branch, seq, commit, through=self._backend)

    def delete_branch(self, branch: str) -> int:
        """Delete a branch and the commits that it alone has; see `MemoryStore.delete_branch`."""
        with (
            self.writer(branch),
            self._backend.commits_lock(exclusive=True),
            os_errors("deleting the branch", self.name),
        ):
            return delete_branch(self._commits, self._refs, branch, pins=self.pins())

    def _check_loadable(self, commit: Commit) -> None:
        if self._commits.was_deleted(commit):
            raise snapshot_deleted(self._commits, commit)

    def nearest(self, start: str | Ref | Commit, position: int) -> Commit:
        """The newest loadable commit at or before `position` among the ancestors of `start`."""
        if isinstance(start, str):
            head = self.head(start)
            if head is None:
                raise no_branch(self.name, start)
            start = head
        return walk.nearest(_commit(start), position, self._commits)

    def tokens(self, ref: Ref | Commit, start: int, stop: int) -> np.ndarray:
        """The token ids at positions [start, stop) of the stream that ends at `ref`, int32."""
        return walk.tokens(_commit(ref), start, stop, self._commits)

    def log(
        self, ref: Ref | Commit, name: str, start: int, stop: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The rows of a log at positions [start, stop), in pieces; see `MemoryStore.log`."""
        return self._logs.rows(_commit(ref), name, start, stop)

    def logs(self, ref: Ref | Commit) -> dict[str, int]:
        """The logs that have rows, and the bytes of a row; see `MemoryStore.logs`."""
        return self._logs.row_sizes(_commit(ref))

    def log_spans(self, ref: Ref | Commit, name: str) -> list[tuple[int, int]]:
        """The ranges of positions that have rows in a log; see `MemoryStore.log_spans`."""
        return self._logs.spans(_commit(ref), name)

    def is_loadable(self, ref: Ref | Commit) -> bool:
        """Whether the snapshot at `ref` still exists; see `gc`."""
        return self._commits.is_loadable(_commit(ref))

    def loadable(self, refs: Sequence[Ref]) -> list[bool]:
        """`is_loadable` of several refs, at less cost."""
        return self._commits.loadable([ref.commit for ref in refs])

    def pins(self) -> dict[str, Commit]:
        """The pinned commits, by the names of the pins."""
        return all_pins(self._backend)

    def pinned(self, name: str) -> Commit:
        """The commit that a pin protects; see `MemoryStore.pinned`."""
        return pinned(self._backend, name)

    def pin(self, ref: Ref | Commit, name: str) -> None:
        """Protect the snapshot at `ref` from garbage collection; see `MemoryStore.pin`."""
        with self._backend.commits_lock(exclusive=False):
            self._check_loadable(_commit(ref))
            add_pin(self._backend, name, _commit(ref))

    def unpin(self, name: str) -> None:
        """Remove a pin; see `MemoryStore.unpin`."""
        remove_pin(self._backend, name)

    def gc(
        self,
        retention: Retention | None = None,
        *,
        grace: float = GRACE,
        dry_run: bool = False,
    ) -> Collected:
        """Delete the snapshots that `retention` does not keep; see `MemoryStore.gc`."""
        with self._backend.commits_lock(exclusive=True), os_errors("collecting garbage", self.name):
            listed = self._commits.names()  # first: commits published later must not be collected
            return collect(
                self._commits,
                {branch: self.refs(branch) for branch in self.branches()},
                self.pins().values(),
                retention or Retention(),
                listed=listed,
                grace=grace,
                dry_run=dry_run,
            )

    def continuing(self, branch: str = "main") -> list[Commit]:
        """The commits after the head that no ref leads to; see `MemoryStore.continuing`."""
        return continuing(self._commits, self._refs, branch)

    def take_up(self, branch: str = "main") -> TakenUp:
        """Publish the commits after the head that no ref leads to; see `MemoryStore.take_up`."""
        if not self.continuing(branch):
            return TakenUp()
        # None is being written while the lock is held.
        with self._backend.commits_lock(exclusive=True), os_errors("publishing", self.name):
            return take_up(self._commits, self._refs, branch)

    def recover(self, branch: str = "main") -> Recovered:
        """Make the newest snapshot that can be opened the head; see `MemoryStore.recover`."""
        with (
            self.writer(branch),
            self._backend.commits_lock(exclusive=True),
            os_errors("recovering", self.name),
        ):
            return recover(self._commits, self._refs, branch)

    def writer(self, branch: str = "main") -> AbstractContextManager[object]:
        """An advisory lock on the branch; see `MemoryStore.writer`."""
        branch_folder(branch)  # refuses an invalid name
        return self._backend.writer(branch)

    def verify(self, ref: Ref | Commit | None = None) -> Verified:
        """Read and check everything reachable from `ref` (default: from every ref)."""
        if ref is not None:
            return verify(self._commits, [_commit(ref)], refs=0)
        read_header(self._backend)
        listed = self._commits.names()  # first: refs published later must not be missed
        refs = [ref for branch in self.branches() for ref in self.refs(branch)]
        pinned = check_pins(self._commits)
        starts = [*(ref.commit for ref in refs), *pinned]
        found = verify(self._commits, starts, refs=len(refs))
        # Last: a commit that was being written has its ref by now.
        histories = {branch: self.refs(branch) for branch in self.branches()}
        evidence = unreferenced(self._commits, histories, listed).evidence
        return replace(found, unreferenced=tuple(commit.name for commit in evidence))

    def size(self, ref: Ref | Commit | None = None) -> int:
        """Bytes of all files of the session, or of the arrays stored in one commit."""
        if ref is not None:
            return self._commits.size(_commit(ref))
        with os_errors("measuring", self.name):
            return self._backend.size()

    def delete(self) -> None:
        """Delete the session with all its branches; see `MemoryStore.delete`."""
        with ExitStack() as stack, os_errors("deleting", self.name):
            for branch in self.branches():
                stack.enter_context(self.writer(branch))
            stack.enter_context(self._backend.commits_lock(exclusive=True))  # no commit meanwhile
            self._backend.delete()


def _commit(ref: Ref | Commit) -> Commit:
    return ref.commit if isinstance(ref, Ref) else ref


if TYPE_CHECKING:

    def _conforms(store: Store) -> MemoryStore:
        return store
