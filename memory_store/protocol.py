"""The interface of a memory store, on any medium."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

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


class MemoryStore(Protocol):
    """One session: its commits, its branches, its token log and its other logs.

    All methods may raise `StoreError` if the medium fails, and `Corrupt` if stored data is damaged.
    """

    @property
    def session(self) -> str:
        """The session's id, 32 hex digits, assigned at creation."""

    @property
    def attributes(self) -> Mapping[str, JSON]:
        """The attributes given at creation; they never change."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """The fingerprints given at creation, the default of `commit`."""

    @property
    def remote(self) -> bool:
        """Whether the medium is a network service without locks; see `gc`."""

    def branches(self) -> list[str]:
        """The branches that have a head, sorted."""

    def head(self, branch: str) -> Ref | None:
        """The newest ref of `branch`, or None if the branch does not exist."""

    def refs(self, branch: str) -> list[Ref]:
        """The history of `branch`, oldest first; empty if the branch does not exist."""

    def commit(
        self,
        snapshot: Snapshot,
        *,
        branch: str = "main",
        parent: Ref | None,
        fingerprints: Mapping[str, str] | None = None,
    ) -> Ref:
        """Write `snapshot` and move the head of `branch` from `parent` to it.

        The snapshot is durable on return: in object storage as the storage guarantees; in a folder
        it survives a killed process and, with durability "full", a crash of the system. On an
        exception the branch is unchanged, unless the message says that the outcome is unknown.

        Args:
            snapshot: the state; only the slots that the parent commit lacks are written. Its rows
                of logs are written as they are.
            branch: the branch to move.
            parent: the head of `branch` that the snapshot continues; None begins the branch.
            fingerprints: of the weights, the tokenizer, …; None uses those of the session.

        Raises:
            Conflict: the head of `branch` is not `parent`.
            StoreFull: no space is left.
            ValueError: the snapshot breaks the rules of `Snapshot`, `Window` or `LogRows`, or its
                tokens do not lead from the parent's position to its own.
        """

    def load(
        self,
        ref: Ref | Commit,
        *,
        fingerprints: Mapping[str, str] | None = None,
        allow_mismatch: bool = False,
    ) -> Snapshot:
        """The snapshot at `ref`, bit for bit as it was committed; checksums are verified.

        Rows of logs are not read, and damage to them is not noticed; see `log` and `verify`.

        Args:
            ref: a ref or commit of this store.
            fingerprints: must equal those recorded with the commit, name by name; None, for tools
                that do not run a model, skips the check.
            allow_mismatch: load even if fingerprints differ.

        Raises:
            Mismatch: fingerprints differ; the message lists them.
            NotFound: the snapshot was deleted by `gc`.
            Corrupt: a file is damaged, missing or not the one that was committed.
        """

    def fingerprints_of(self, ref: Ref | Commit) -> Mapping[str, str]:
        """The fingerprints recorded with a commit."""

    def attributes_of(self, ref: Ref | Commit) -> Mapping[str, JSON]:
        """The attributes of the snapshot at `ref`; its arrays are not read."""

    def publish(self, ref: Ref | Commit, *, branch: str) -> Ref:
        """Make the commit at `ref` the head of `branch`: a rewind, or the fork of a new branch.

        No data is copied; the history of `branch` grows by one ref.

        Raises:
            Conflict: another writer moved the branch at the same time.
            NotFound: the snapshot was deleted by `gc`.
        """

    def nearest(self, start: str | Ref | Commit, position: int) -> Commit:
        """The newest loadable commit at or before `position` among the ancestors of `start`.

        Args:
            start: a branch (its head), a ref or a commit; it counts as its own ancestor.
            position: tokens read.

        Raises:
            NotFound: the branch does not exist, or its loadable history begins after `position`.
        """

    def tokens(self, ref: Ref | Commit, start: int, stop: int) -> np.ndarray:
        """The token ids at positions [start, stop) of the stream that ends at `ref`, int32.

        Raises:
            ValueError: not 0 ≤ start ≤ stop ≤ the position of `ref`.
            NotFound: the log begins after `start`.
        """

    def log(
        self, ref: Ref | Commit, name: str, start: int, stop: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The rows of a log that exist at positions [start, stop) of the stream that ends at `ref`.

        Positions without rows are left out: those that no commit brought, and those that `gc`
        deleted. Of several rows for one position, the newest on the way back from `ref` counts.
        The manifests since `start` are read at once, the rows as the iterator reaches them: in a
        folder 2 MiB at a time, in object storage 32 MiB. Checksums are verified.

        Returns:
            Pieces (position of the first row, rows [n, …]) in ascending order, of at most 65,536
            rows and 2 MiB, or one row; none if no commit has a log of that name. A caller may
            change or keep the rows.

        Raises:
            ValueError: not 0 ≤ start ≤ stop ≤ the position of `ref`.
        """

    def logs(self, ref: Ref | Commit) -> dict[str, int]:
        """The logs that a commit or its ancestors have rows of, by name; reads no rows.

        Returns:
            The bytes of each log's newest row.
        """

    def log_spans(self, ref: Ref | Commit, name: str) -> list[tuple[int, int]]:
        """The ranges [start, stop) of positions that have rows in a log; reads no rows.

        Returns:
            The ranges in ascending order; they neither overlap nor touch.
        """

    def is_loadable(self, ref: Ref | Commit) -> bool:
        """Whether the snapshot at `ref` still exists: `gc` may have deleted it."""

    def pins(self) -> dict[str, Commit]:
        """The pinned commits, by the names of the pins."""

    def pinned(self, name: str) -> Commit:
        """The commit that a pin protects.

        Raises:
            NotFound: no pin has that name.
        """

    def pin(self, ref: Ref | Commit, name: str) -> None:
        """Protect the snapshot at `ref` from garbage collection.

        Raises:
            NotFound: the snapshot was deleted already.
            StoreError: the name pins another commit.
        """

    def unpin(self, name: str) -> None:
        """Remove a pin.

        Raises:
            NotFound: no pin has that name.
        """

    def gc(
        self,
        retention: Retention | None = None,
        *,
        grace: float = 3600.0,
        dry_run: bool = False,
    ) -> Collected:
        """Delete the snapshots that `retention` does not keep, and files of interrupted writes.

        Heads and pinned commits stay, and the commits that they are loaded from. Every deleted
        commit leaves its record, so that the chain of ids stays complete, and its token ids and
        rows of logs if the retention keeps them. The session may be written to during the
        collection. Object storage has no locks: there, forking, rewinding to or pinning an old
        snapshot during the collection is unsafe, because the snapshot may be deleted.

        Args:
            retention: the snapshots to keep; None keeps all of them.
            grace: seconds; younger files are never taken for those of an interrupted write.
            dry_run: report what would be deleted, and delete nothing.

        Raises:
            Corrupt: a ref, a pin or a commit's record is damaged; the collection stops there.
        """

    def continuing(self, branch: str = "main") -> list[Commit]:
        """The complete commits that continue the head of `branch`, though no ref leads to them.

        Their writer was killed before their ref was created, or is about to create it, or the ref
        was lost. Of "main" without refs, these are all commits that no ref names.
        """

    def take_up(self, branch: str = "main") -> TakenUp:
        """Publish the commits of `continuing`, if they form one line and belong to no other branch.

        Call it with the branch's `writer` lock held. What is left stays until `recover`.

        Raises:
            Corrupt: "main" has no refs, and which commits are its own is not plain.
        """

    def recover(self, branch: str = "main") -> Recovered:
        """Make the newest snapshot of a branch that can be opened its head; report the damage.

        Opening needs the snapshot and the ids of the newest tokens. This is the only operation that
        falls back to an older snapshot; all others raise on damage. Nothing is deleted: unreadable
        refs and pins move to `lost/`. Commits that no ref leads to are used: they continue the
        branch, or become branches `found-…` if it is not plain whose they are. Damaged rows of logs
        do not make a snapshot unloadable.

        Raises:
            NotFound: the branch does not exist, or none of its snapshots can be opened.
            Locked: another writer holds the branch.
        """

    def writer(self, branch: str = "main") -> AbstractContextManager[object]:
        """An advisory lock on the branch, so that a second writer fails early.

        `commit` itself prevents lost updates. Object storage has no locks, and excludes nobody.

        Raises:
            Locked: on entry, if another writer holds the branch; the message names its process.
        """

    def verify(self, ref: Ref | Commit | None = None) -> Verified:
        """Read and check everything reachable from `ref` (default: from every ref and pin).

        Commits that lost refs may have led to are reported, not raised: a killed writer may have
        left them.

        Raises:
            Corrupt: names the first file that differs from what was written.
        """

    def size(self, ref: Ref | Commit | None = None) -> int:
        """Bytes of all files of the session, or of the arrays stored in one commit."""

    def delete_branch(self, branch: str) -> int:
        """Delete a branch, with the commits that no other branch has; returns their number.

        An interrupted deletion can be repeated. Object storage has no locks: there, nobody may
        write to the branch or fork from it meanwhile.

        Raises:
            ValueError: the branch is "main", a pin protects one of these commits, or another branch
                was forked from one.
            NotFound: there is no such branch.
            Locked: another writer holds it.
            Corrupt: a ref or a commit's record is damaged.
        """

    def delete(self) -> None:
        """Delete the session with all its branches.

        Raises:
            Locked: another writer holds a branch.
        """
