"""What every memory store offers, whatever medium keeps it."""

from collections.abc import Mapping
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
    Verified,
)


class MemoryStore(Protocol):
    """Keeps one session: its commits, its branches, its token log.

    All methods may raise `StoreError` where the medium refuses, and `Corrupt` where it lies.
    """

    @property
    def session(self) -> str:
        """The session's id, 32 hex digits, given at creation."""

    @property
    def attributes(self) -> Mapping[str, JSON]:
        """What the creator wrote about the session; never changes."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """The fingerprints given at creation; commits that name none record these."""

    @property
    def remote(self) -> bool:
        """Whether it lies where nothing can be locked; see `gc`."""

    def branches(self) -> list[str]:
        """The branches that have a head, sorted."""

    def head(self, branch: str) -> Ref | None:
        """The newest ref of `branch`, or None if there is no such branch."""

    def refs(self, branch: str) -> list[Ref]:
        """The history of `branch`, oldest first; empty if there is no such branch."""

    def commit(
        self,
        snapshot: Snapshot,
        *,
        branch: str = "main",
        parent: Ref | None,
        fingerprints: Mapping[str, str] | None = None,
    ) -> Ref:
        """Write `snapshot` and move the head of `branch` from `parent` to it.

        Once this returns, the snapshot lasts: in object storage as the storage promises; in a
        folder it survives a killed process and, with durability "full", a crash of the system. If
        it raises, the branch is as it was, unless the message says that this is not known.

        Args:
            snapshot: the state; only what the parent commit lacks is written.
            branch: the branch to move.
            parent: the head of `branch` that the snapshot continues; None begins the branch.
            fingerprints: of the weights, the tokenizer, …; those of the session if None.

        Raises:
            Conflict: the head of `branch` is not `parent`.
            StoreFull: no space left.
            ValueError: the snapshot breaks the rules of `Snapshot` or `Window`, or its tokens do
                not lead from the parent's position to its own.
        """

    def load(
        self,
        ref: Ref | Commit,
        *,
        fingerprints: Mapping[str, str] | None = None,
        allow_mismatch: bool = False,
    ) -> Snapshot:
        """The snapshot at `ref`, bit for bit as it was committed, checked as it is read.

        Args:
            ref: a ref or commit of this store.
            fingerprints: must equal those recorded with the commit, name by name; None, for tools
                that do not run a model, checks nothing.
            allow_mismatch: load all the same when fingerprints differ.

        Raises:
            Mismatch: fingerprints differ; the message says which.
            Corrupt: a file is damaged, missing or not the one that was committed.
        """

    def fingerprints_of(self, ref: Ref | Commit) -> Mapping[str, str]:
        """The fingerprints recorded with a commit."""

    def publish(self, ref: Ref | Commit, *, branch: str) -> Ref:
        """Make the commit at `ref` the head of `branch`: a rewind, or the fork of a new branch.

        No data is copied, and the history of `branch` keeps what it had.

        Raises:
            Conflict: the branch was moved meanwhile.
        """

    def nearest(self, start: str | Ref | Commit, position: int) -> Commit:
        """The newest commit at or before `position` on the way to `start`.

        Args:
            start: where to look back from: a branch (its head), a ref or a commit.
            position: tokens read.

        Raises:
            NotFound: no such branch, or the history begins after `position`.
        """

    def tokens(self, ref: Ref | Commit, start: int, stop: int) -> np.ndarray:
        """The token ids at positions [start, stop) on the way to `ref`, int32.

        Raises:
            ValueError: not 0 ≤ start ≤ stop ≤ the position of `ref`.
            NotFound: the log begins after `start`.
        """

    def is_whole(self, ref: Ref | Commit) -> bool:
        """Whether the state at `ref` is kept: `gc` may have let go of it."""

    def pins(self) -> dict[str, Commit]:
        """The commits that are pinned, by the names of the pins."""

    def pin(self, ref: Ref | Commit, name: str) -> None:
        """Keep the state at `ref`, whatever `gc` is told.

        Raises:
            NotFound: its state was let go already.
            StoreError: the name is taken by another commit.
        """

    def unpin(self, name: str) -> None:
        """Remove a pin.

        Raises:
            NotFound: there is none of that name.
        """

    def gc(
        self,
        retention: Retention | None = None,
        *,
        grace: float = 3600.0,
        dry_run: bool = False,
    ) -> Collected:
        """Let go of the states that nothing asks to keep, and sweep what writers left behind.

        Heads and pinned commits stay, and all that they are loaded from. Of every other commit its
        record stays, so that the chain of ids is whole, and its token ids if the retention says so.
        A session may be written while this runs. In object storage, where nothing can be locked,
        nobody may fork, rewind to or pin an old snapshot meanwhile: it may be gone.

        Args:
            retention: which snapshots to keep; None keeps all, and sweeps.
            grace: seconds; what is younger is not taken for something left behind.
            dry_run: only tell what would be done.

        Raises:
            Corrupt: a ref, a pin or a commit's record is damaged; nothing more is removed then.
        """

    def recover(self, branch: str = "main") -> Recovered:
        """Make the newest state of a branch that can be loaded its head, and say what was lost.

        The one thing that falls back to an older state: everything else raises on damage. Nothing
        is thrown away; refs that cannot be read are kept in `lost/`.

        Raises:
            NotFound: no such branch, or none of its states can be loaded.
            Locked: another writer holds the branch.
        """

    def writer(self, branch: str = "main") -> AbstractContextManager[object]:
        """Hold the branch while writing, so that a second writer is told early.

        The guard against lost commits is `commit` itself; this one is a courtesy, which object
        storage does not offer.

        Raises:
            Locked: on entry, if another writer holds it; the message names the process.
        """

    def verify(self, ref: Ref | Commit | None = None) -> Verified:
        """Read everything that `ref` (default: every ref) reaches, and check it all.

        Raises:
            Corrupt: names the first file that is not as it was written.
        """

    def size(self, ref: Ref | Commit | None = None) -> int:
        """Bytes of all files of the session, or of the arrays that one commit itself holds."""

    def delete(self) -> None:
        """Remove the session with all its branches.

        Raises:
            Locked: another writer holds a branch.
        """
