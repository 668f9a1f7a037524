"""The values of the store: what is committed, what is loaded, and what is reported.

The state of a session consists of windows of slots that grow at one end, small arrays, the token
ids read since the parent commit, and small JSON attributes. A *snapshot* is one such state. It may
bring rows of *logs*: arrays with one row per token, which are read in ranges and never loaded. A
*commit* is a stored snapshot; it is written once and never changed. A *ref* records that a branch
pointed at a commit. The refs of a branch, oldest first, are its history; the last one is its head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

import numpy as np

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"


@dataclass(frozen=True, eq=False)
class Window:
    """An array that holds the newest slots of a stream.

    Slots are append-only: a committed slot keeps its value and its number (0 for the first slot of
    the stream), so a commit writes new slots only. The store compares the other slots with the
    parent commit and rewrites the whole window if one of them has changed.

    Attributes:
        data: the current slots along `axis`, newest last, without padding.
        axis: the axis of `data` along which it grows.
        end: slots appended since the stream began; `data` holds the slots [end - n, end).
        capacity: the maximal number of slots in the window.
    """

    data: np.ndarray
    axis: int
    end: int
    capacity: int


@dataclass(frozen=True, eq=False)
class LogRows:
    """Rows of a log, one for each token of a range of the stream.

    Attributes:
        start: position of the first row; 0 is the first token of the stream.
        data: the rows of the positions [start, start + n), [n, …], at least one, none of them
            empty. Shape and dtype of a row may differ between commits.
    """

    start: int
    data: np.ndarray


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One state of a session, as it is committed and as it is loaded.

    Arrays are boolean, integer or float; bfloat16 is stored as uint16, and the caller records the
    real dtype in `attributes` (`stored_dtype`). Names match [A-Za-z0-9][A-Za-z0-9._-]*, differ by
    more than case, and are unique among windows, arrays and logs; "tokens" is reserved.

    Attributes:
        position: tokens read since the stream began.
        windows: name → window; a commit writes only the slots that its parent lacks.
        arrays: name → small array, written whole at each commit.
        tokens: ids read since the parent commit, [n] int32; n is position − the parent's position.
            A first commit may have fewer: its log then begins at position − n.
        attributes: small JSON state: text tails, random generator, settings. Tuples are loaded as
            lists. NaN and infinity are refused.
        logs: name → rows of that log, for any positions before `position`: a log may begin late,
            have gaps, and be filled in by a later commit, which may have no tokens of its own. A
            loaded snapshot has none; see `MemoryStore.log`.
    """

    position: int
    windows: Mapping[str, Window] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    attributes: Mapping[str, JSON] = field(default_factory=dict)
    logs: Mapping[str, LogRows] = field(default_factory=dict)


@dataclass(frozen=True)
class Commit:
    """The address of a commit.

    Attributes:
        name: its file name, "<position, 12 digits>-<32 hex digits>.zip"; without ".zip" for a
            folder of schema 1.
        id: sha256 of its attributes, in hex; covers its content and, through the ids of its parent
            and of the commits that hold its slots, its history.
        position: tokens read when it was committed.
    """

    name: str
    id: str
    position: int


@dataclass(frozen=True)
class Ref:
    """An entry in a branch's history.

    Attributes:
        branch: the branch.
        seq: the number of the entry, from 0.
        commit: the commit that the branch points at from this entry on.
        created: seconds since 1970.
    """

    branch: str
    seq: int
    commit: Commit
    created: float

    @property
    def position(self) -> int:
        """Tokens read at the commit."""
        return self.commit.position


WHOLE_EVERY = 1 << 14  # tokens; the first commit behind each multiple writes all of its slots


@dataclass(frozen=True)
class Retention:
    """Which snapshots of a branch garbage collection keeps; heads and pinned snapshots always stay.

    Attributes:
        last: keep the newest `last` snapshots of each branch; None keeps all.
        thin: also keep about `last` older snapshots for each doubling of their age in tokens. Any
            position is then restored from the nearest kept snapshot by reading at most about
            1/`last` of its age in tokens again.
        spacing: of the snapshots that `last` and `thin` keep, keep one in so many tokens, a power
            of two: the first behind each multiple; and the newest quarter of `last` in any case.
            Short turns then take little more room than a long text. 0 keeps all of them.
        log: keep the token ids of deleted snapshots, 4 bytes a token, their rows of logs, and the
            first snapshot, so that every position can be restored. Without it, token ids and rows
            that were committed before the oldest kept snapshot are deleted.

    Raises:
        ValueError: `last` below 1, thin or spacing without what they need, or spacing is no power
            of two.
    """

    last: int | None = None
    thin: bool = False
    log: bool = True
    spacing: int = 0

    def __post_init__(self) -> None:
        if self.last is not None and (type(self.last) is not int or self.last < 1):
            raise ValueError(f"last = {self.last!r}; allowed: an integer of at least 1, or None")
        if self.last is None and (self.thin or not self.log):
            raise ValueError(
                f"thin = {self.thin}, log = {self.log} with last = None; thin and log = False need "
                "`last`, an integer of at least 1"
            )

        spaced = type(self.spacing) is int and self.spacing >= 0
        if not spaced or self.spacing & (self.spacing - 1) or (self.spacing and not self.thin):
            raise ValueError(
                f"spacing = {self.spacing!r}; allowed: 0, or a power of two together with thin"
            )

    @property
    def newest(self) -> int | None:
        """How many of the newest snapshots stay, however close they are; None is all."""
        return self.last if self.last is None or not self.spacing else -(-self.last // 4)

    def kept(self, refs: Sequence[Ref]) -> list[Ref]:
        """The refs of a branch, oldest first, whose snapshots stay loadable.

        Incremental collection while the branch grows keeps the same refs as one collection at the
        end.
        """
        if self.last is None or self.newest is None or len(refs) <= self.newest:
            return list(refs)
        thinned: list[Ref] = []
        if self.spacing:
            now = refs[-1].position
            # Here the first ref of each block stays: it needs no other commit (see WHOLE_EVERY).
            for before, ref in pairwise(refs[: len(refs) - self.newest]):
                age = max(0, now - ref.position)
                size = max(self.spacing, 1 << max(0, (age // self.last).bit_length() - 1))
                if before.position // size != ref.position // size:
                    thinned.append(ref)
        elif self.thin:
            now = refs[-1].position
            # Blocks nest by halves and the newest ref of each block stays, so a ref deleted early
            # would also be deleted late.
            for ref, following in pairwise(refs[: len(refs) - self.last + 1]):
                age = max(0, now - ref.position)
                size = 1 << max(0, (age // self.last).bit_length() - 1)
                if ref.position // size != following.position // size:
                    thinned.append(ref)
        return [*thinned, *refs[-self.newest :]]


@dataclass(frozen=True)
class Verified:
    """What `verify` has read and checked.

    Attributes:
        refs, commits: how many.
        bytes: of arrays.
        unreferenced: names of commits that no ref leads to, though they continue a branch: refs
            were lost, or a writer was killed before it created one.
    """

    refs: int
    commits: int
    bytes: int
    unreferenced: tuple[str, ...] = ()


@dataclass(frozen=True)
class Collected:
    """What `gc` has done, or would do.

    Attributes:
        kept: snapshots that stay loadable.
        deleted: commits whose snapshot was deleted.
        tokens_deleted: commits whose token ids and rows of logs were deleted.
        leftovers: files of interrupted writes that were removed.
        bytes: approximate number of bytes freed.
    """

    kept: int
    deleted: int
    tokens_deleted: int
    leftovers: int
    bytes: int


@dataclass(frozen=True)
class Recovered:
    """The result of `recover`.

    Attributes:
        head: the new head of the branch; a session can be opened at it.
        damage: one message for each damaged ref, commit or pin; empty if there was none.
        found: one message for each commit or pin that was restored.
    """

    head: Ref
    damage: tuple[str, ...]
    found: tuple[str, ...] = ()


@dataclass(frozen=True)
class TakenUp:
    """The result of `take_up`.

    Attributes:
        refs: the refs that were created, oldest first.
        left: commits that continue the branch and were not taken up.
    """

    refs: tuple[Ref, ...] = ()
    left: tuple[Commit, ...] = ()
