"""What is committed, what is loaded, and what every memory store offers.

A session's state is a few windows of slots that grow at one end, some small arrays, the token ids
read since the parent commit, and small JSON attributes. A *commit* is one such snapshot, written
once and never changed. A *ref* says that a branch pointed at a commit; the refs of a branch, oldest
first, are its history, and the last one is its head.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from memory_store.garbage import Collected
    from memory_store.recovery import Recovered
    from memory_store.retention import Retention

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"


@dataclass(frozen=True, eq=False)
class Window:
    """An array of which only the newest slots are kept.

    Slots are only ever appended: a slot, once part of a committed window, keeps its value and its
    number (0 for the first slot of the stream). Thus only new slots are written. The store compares
    the others with what it has, and writes a window whole if one of them has changed all the same.

    Attributes:
        data: the whole window as it is now, real slots only, slots along `axis`, newest last.
        axis: the axis of `data` along which it grows.
        end: slots appended since the stream began; `data` holds the slots [end - n, end).
        capacity: the window never holds more slots than this.
    """

    data: np.ndarray
    axis: int
    end: int
    capacity: int


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One state of a session, as it is committed and as it is loaded.

    Arrays are boolean, integer or float; bfloat16 travels as uint16, and the caller notes in
    `attributes` (`stored_dtype`) what the bits are. Names match [A-Za-z0-9][A-Za-z0-9._-]*, differ
    by more than case, and are shared by windows and arrays; "tokens" is taken.

    Attributes:
        position: tokens read since the stream began.
        windows: name → window; only slots that the parent commit lacks are written.
        arrays: name → small array, written whole at each commit.
        tokens: ids read since the parent commit, [n] int32; n is position − the parent's position.
            A first commit may know fewer: its log then begins at position − n.
        attributes: small JSON state: text tails, random generator, settings. Tuples come back as
            lists. NaN and infinity are refused.
    """

    position: int
    windows: Mapping[str, Window] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    attributes: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True)
class Commit:
    """The address of a commit.

    Attributes:
        name: its folder, "<position, 12 digits>-<32 hex digits>".
        id: sha256 of its attributes, in hex; covers its content and, through the ids of its parent
            and window, its history.
        position: tokens read when it was made.
    """

    name: str
    id: str
    position: int


@dataclass(frozen=True)
class Ref:
    """An entry in a branch's history.

    Attributes:
        branch: the branch.
        seq: 0 for the branch's first entry, then counting up.
        commit: the commit that the branch pointed at from then on.
        created: when, in seconds since 1970.
    """

    branch: str
    seq: int
    commit: Commit
    created: float

    @property
    def position(self) -> int:
        """Tokens read when the commit was made."""
        return self.commit.position


@dataclass(frozen=True)
class Verified:
    """What `verify` has read and found right."""

    refs: int
    commits: int
    bytes: int


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
        retention: "Retention | None" = None,
        *,
        grace: float = 3600.0,
        dry_run: bool = False,
    ) -> "Collected":
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

    def recover(self, branch: str = "main") -> "Recovered":
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
