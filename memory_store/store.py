"""A memory store over any backend: the same format, history and rules everywhere."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

import numpy as np

from memory_store import history
from memory_store.backend import Backend
from memory_store.commits import Commits
from memory_store.committing import commit_snapshot
from memory_store.errors import os_errors
from memory_store.header import Header, read_header
from memory_store.loading import load_snapshot
from memory_store.names import branch_folder
from memory_store.protocol import JSON, Commit, MemoryStore, Ref, Snapshot, Verified
from memory_store.refs import Refs, no_branch
from memory_store.verify import verify


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
        self._commits.read(commit)
        head = self.head(branch)
        with os_errors("moving the branch", self.name):
            seq = head.seq + 1 if head else 0
            return self._refs.publish(branch, seq, commit, through=self._backend)

    def nearest(self, start: str | Ref | Commit, position: int) -> Commit:
        """The newest commit at or before `position` on the way to `start`."""
        if isinstance(start, str):
            head = self.head(start)
            if head is None:
                raise no_branch(start)
            start = head
        return history.nearest(_commit(start), position, self._commits)

    def tokens(self, ref: Ref | Commit, start: int, stop: int) -> np.ndarray:
        """The token ids at positions [start, stop) on the way to `ref`, int32."""
        return history.tokens(_commit(ref), start, stop, self._commits)

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

    def size(self) -> int:
        """Bytes of all files of the session."""
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
