"""A memory store over any backend: the same format, history and rules everywhere."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

import numpy as np

from memory_store.backend import Backend
from memory_store.errors import os_errors
from memory_store.format.header import Header, read_header
from memory_store.format.names import branch_folder
from memory_store.history import walk
from memory_store.history.loading import let_go, load_snapshot
from memory_store.history.reading import Commits
from memory_store.history.refs import Refs, add_pin, all_pins, no_branch, remove_pin
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
    Verified,
)
from memory_store.upkeep.gc import GRACE, collect
from memory_store.upkeep.recovery import recover
from memory_store.upkeep.verify import verify


class Store:
    """One session on a backend; see `protocol.MemoryStore` for what it does."""

    def __init__(self, backend: Backend, header: Header) -> None:
        self._backend = backend
        self._header = header
        self._refs = Refs(backend)
        self._commits = Commits(backend, header.session)

    @property
    def name(self) -> str:
        """Where the session lies: a path or a URL."""
        return self._backend.name()

    @property
    def session(self) -> str:
        """The session's id, 32 hex digits."""
        return self._header.session

    @property
    def attributes(self) -> Mapping[str, JSON]:
        """What the creator wrote about the session."""
        return self._header.attributes

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """The fingerprints given at creation."""
        return self._header.fingerprints

    @property
    def remote(self) -> bool:
        """Whether it lies where nothing can be locked; see `gc`."""
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
        with os_errors("committing", self.name):
            return commit_snapshot(
                snapshot,
                self._commits,
                self._refs,
                branch=branch,
                parent=parent,
                fingerprints=self.fingerprints if fingerprints is None else fingerprints,
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

    def publish(self, ref: Ref | Commit, *, branch: str) -> Ref:
        """Make the commit at `ref` the head of `branch`; see `MemoryStore.publish`."""
        commit = _commit(ref)
        with self._backend.naming(alone=False):
            self._check_kept(commit)
            head = self.head(branch)
            with os_errors("moving the branch", self.name):
                seq = head.seq + 1 if head else 0
                return self._refs.publish(branch, seq, commit, through=self._backend)

    def _check_kept(self, commit: Commit) -> None:
        if self._commits.was_let_go(commit):
            raise let_go(self._commits, commit)

    def nearest(self, start: str | Ref | Commit, position: int) -> Commit:
        """The newest commit at or before `position` on the way to `start`."""
        if isinstance(start, str):
            head = self.head(start)
            if head is None:
                raise no_branch(self.name, start)
            start = head
        return walk.nearest(_commit(start), position, self._commits)

    def tokens(self, ref: Ref | Commit, start: int, stop: int) -> np.ndarray:
        """The token ids at positions [start, stop) on the way to `ref`, int32."""
        return walk.tokens(_commit(ref), start, stop, self._commits)

    def is_whole(self, ref: Ref | Commit) -> bool:
        """Whether the state at `ref` is kept; see `gc`."""
        return self._commits.is_whole(_commit(ref))

    def whole(self, refs: Sequence[Ref]) -> list[bool]:
        """`is_whole` of many, at less cost."""
        return self._commits.whole([ref.commit for ref in refs])

    def pins(self) -> dict[str, Commit]:
        """What is pinned, by name."""
        return all_pins(self._backend)

    def pin(self, ref: Ref | Commit, name: str) -> None:
        """Keep the state at `ref`, whatever the retention; see `MemoryStore.pin`."""
        with self._backend.naming(alone=False):
            self._check_kept(_commit(ref))
            add_pin(self._backend, name, _commit(ref))

    def unpin(self, name: str) -> None:
        """Let go of a pin; see `MemoryStore.unpin`."""
        remove_pin(self._backend, name)

    def gc(
        self,
        retention: Retention | None = None,
        *,
        grace: float = GRACE,
        dry_run: bool = False,
    ) -> Collected:
        """Let go of what nothing asks to keep; see `MemoryStore.gc`."""
        with self._backend.naming(alone=True), os_errors("collecting garbage", self.name):
            there = self._commits.names()  # first: what is published from here on is not among it
            return collect(
                self._commits,
                {branch: self.refs(branch) for branch in self.branches()},
                self.pins().values(),
                retention or Retention(),
                there=there,
                grace=grace,
                dry_run=dry_run,
            )

    def recover(self, branch: str = "main") -> Recovered:
        """Make the newest sound state of a branch its head; see `MemoryStore.recover`."""
        with self.writer(branch), os_errors("recovering", self.name):
            return recover(self._commits, self._refs, branch)

    def writer(self, branch: str = "main") -> AbstractContextManager[object]:
        """Hold the branch while writing; see `MemoryStore.writer`."""
        branch_folder(branch)  # refuses what is no name
        return self._backend.writer(branch)

    def verify(self, ref: Ref | Commit | None = None) -> Verified:
        """Read everything that `ref` (default: every ref) reaches, and check it all."""
        if ref is not None:
            return verify(self._commits, [_commit(ref)], refs=0)
        read_header(self._backend)
        refs = [ref for branch in self.branches() for ref in self.refs(branch)]
        return verify(self._commits, [ref.commit for ref in refs], refs=len(refs))

    def size(self, ref: Ref | Commit | None = None) -> int:
        """Bytes of all files of the session, or of the arrays that one commit itself holds."""
        if ref is not None:
            return self._commits.size(_commit(ref))
        with os_errors("measuring", self.name):
            return self._backend.size()

    def delete(self) -> None:
        """Remove the session with all its branches; see `MemoryStore.delete`."""
        with ExitStack() as stack, os_errors("deleting", self.name):
            for branch in self.branches():
                stack.enter_context(self.writer(branch))
            self._backend.delete()


def _commit(ref: Ref | Commit) -> Commit:
    return ref.commit if isinstance(ref, Ref) else ref


if TYPE_CHECKING:

    def _conforms(store: Store) -> MemoryStore:
        return store
