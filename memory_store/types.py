"""What is committed, what is loaded, and what the store reports.

A session's state is a few windows of slots that grow at one end, some small arrays, the token ids
read since the parent commit, and small JSON attributes. A *commit* is one such snapshot, written
once and never changed. A *ref* says that a branch pointed at a commit; the refs of a branch, oldest
first, are its history, and the last one is its head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

import numpy as np

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
class Retention:
    """Which snapshots of a branch stay loadable; heads and pinned ones always do.

    Attributes:
        last: the newest so many of each branch; None keeps all.
        thin: and of the older ones about `last` for each doubling of their age in tokens, instead
            of none. From the nearest one, any position is reached by reading `last`ths of its age
            in tokens again.
        log: keep the token ids of the others, 4 bytes a token, and the first snapshot, so that all
            positions stay within reach. Without, what is older than the oldest snapshot that is
            kept is forgotten.

    Raises:
        ValueError: `last` below 1, or thin without `last`.
    """

    last: int | None = None
    thin: bool = False
    log: bool = True

    def __post_init__(self) -> None:
        if self.last is not None and (type(self.last) is not int or self.last < 1):
            raise ValueError(f"last = {self.last!r}; allowed: an integer of at least 1, or None")
        if self.last is None and (self.thin or not self.log):
            raise ValueError("thin and log = False say what happens to others than the `last`")

    def kept(self, refs: Sequence[Ref]) -> list[Ref]:
        """Those of a branch's refs, oldest first, that stay loadable.

        Applied again and again while the branch grows, it keeps the same ones as at once at the
        end.
        """
        if self.last is None or len(refs) <= self.last:
            return list(refs)
        thinned: list[Ref] = []
        if self.thin:
            now = refs[-1].position
            # A block is half of a larger one, and of each the newest stays: what goes early would
            # also go late.
            for ref, following in pairwise(refs[: len(refs) - self.last + 1]):
                age = max(0, now - ref.position)
                size = 1 << max(0, (age // self.last).bit_length() - 1)
                if ref.position // size != following.position // size:
                    thinned.append(ref)
        return [*thinned, *refs[-self.last :]]


@dataclass(frozen=True)
class Verified:
    """What `verify` has read and found right."""

    refs: int
    commits: int
    bytes: int


@dataclass(frozen=True)
class Collected:
    """What `gc` has done, or would do.

    Attributes:
        kept: snapshots that can still be loaded.
        released: commits whose state was let go.
        forgotten: commits whose token ids were let go too.
        leftovers: pieces of writes that never ended.
        bytes: that were freed, about.
    """

    kept: int
    released: int
    forgotten: int
    leftovers: int
    bytes: int


@dataclass(frozen=True)
class Recovered:
    """What `recover` has found, and made of it.

    Attributes:
        head: the branch's head now; its state can be loaded.
        damage: a sentence for everything that could not be read; empty if all was well.
    """

    head: Ref
    damage: tuple[str, ...]
