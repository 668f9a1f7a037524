"""Which slots a commit writes, and how the windows are put together again.

Each commit holds the slots [first, end) that its parent lacked. A window is rebuilt from its newest
slot backwards: this commit's slots, then those before them from the commit that holds them, until
the oldest slot is reached.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from memory_store.errors import Corrupt, StoreError
from memory_store.format.manifest import MAX_WINDOW, Held, Slots, Source
from memory_store.format.zarr import Stored, dtype_name
from memory_store.history.checksums import Kept, covers, slot_sums, unchanged
from memory_store.history.reading import Commits
from memory_store.types import Commit, Window


@dataclass(frozen=True)
class Piece:
    """The slots [low, high) of a window, and the commit that holds them among others."""

    commit: Commit
    held: Held
    low: int
    high: int


@dataclass(frozen=True)
class Plan:
    """What a commit writes.

    Attributes:
        parent: the commit that it continues.
        stored: name → where the slots lie that need not be written again.
        first: name → first slot of the window that the commit itself holds.
        window: the other commits that its windows need, oldest first.
    """

    parent: Commit | None
    stored: Mapping[str, list[Piece]]
    first: Mapping[str, int]
    window: tuple[Source, ...]


class Differs(Exception):
    """Slots are not what was committed.

    Attributes:
        windows: the names of those that have such slots.
    """

    def __init__(self, windows: Set[str]) -> None:
        super().__init__(", ".join(sorted(windows)))
        self.windows = windows


def pieces(
    name: str, start: int, end: int, sources: Iterable[Source], *, path: object
) -> list[Piece]:
    """Where the slots [start, end) of a window lie, newest piece first.

    Raises:
        Corrupt: the sources, newest first, do not hold them all, as `path` says they do.
    """
    found, low = [], end
    for source in sources:
        held = source.held.get(name)
        if held is not None and held.first < low <= held.end and start < low:
            found.append(Piece(source.commit, held, max(held.first, start), low))
            low = found[-1].low
    if low != start:
        raise Corrupt(
            f"{path}: slots {start} to {low} of window {name!r} are in none of the commits that "
            "should hold them. Load an older commit."
        )
    return found


def plan(
    windows: Mapping[str, Window], parent: Commit | None, commits: Commits, anew: Set[str]
) -> Plan:
    """What to write so that `windows` can be rebuilt from at most MAX_WINDOW commits.

    It takes for granted that slots that the parent has are the same; `confirm` makes sure of it.

    Args:
        windows: what is to be committed.
        parent: the commit that they continue.
        commits: reads what is stored.
        anew: the names of those that are to be written whole.
    """
    first = {name: _start(window) for name, window in windows.items()}
    if parent is None:
        return Plan(None, {}, first, ())
    manifest = commits.manifest(parent)
    sources = manifest.sources(parent)
    stored: dict[str, list[Piece]] = {}
    needed: dict[Commit, dict[str, Held]] = {}
    for name, window in windows.items():
        slots = manifest.slots.get(name)
        if slots is not None and name not in anew and _continues(window, slots):
            with suppress(Corrupt):
                low = min(first[name], slots.end)
                stored[name] = pieces(name, low, slots.end, sources, path=commits.name(parent))
                for piece in stored[name]:
                    needed.setdefault(piece.commit, {})[name] = piece.held
    if len(needed) >= MAX_WINDOW:
        return Plan(parent, {}, first, ())
    first |= {name: max(manifest.slots[name].end, first[name]) for name in stored}
    window_sources = [
        Source(source.commit, needed[source.commit])
        for source in reversed(sources)
        if source.commit in needed
    ]
    return Plan(parent, stored, first, tuple(window_sources))


def confirm(todo: Plan, windows: Mapping[str, Window], commits: Commits) -> Kept:
    """Compare slots that are not to be written again with what was committed.

    With the checksums that `commits` remembers, if nobody has touched the files since, or else with
    what is stored. What is loaded is thus always what was committed.

    Returns:
        What to know at the next commit.

    Raises:
        Differs: some are not the same, or cannot be read.
    """
    if todo.parent is None:
        return Kept({name: slot_sums(window) for name, window in windows.items()})
    manifest = commits.manifest(todo.parent)
    holders = {piece.commit for found in todo.stored.values() for piece in found}
    stamps = {commit: commits.stamp(commit) for commit in holders}
    known = {
        name: sums
        for name, sums in commits.kept(todo.parent, stamps).items()
        if name in todo.stored and covers(sums, windows[name])
    }

    def wanted() -> Iterator[tuple[Commit, Stored, str]]:
        for name in todo.stored.keys() - known.keys():
            for piece in todo.stored[name]:
                yield piece.commit, piece.held.stored(manifest.slots[name]), name

    differing = {name for name, sums in known.items() if not unchanged(windows[name], sums)}
    with commits.ahead(wanted) as reader:
        for name in todo.stored.keys() - known.keys():
            slots, found = manifest.slots[name], todo.stored[name]
            try:
                same = all(_equal(name, windows[name], slots, piece, reader) for piece in found)
            except StoreError:
                same = False  # the caller has the slots: damage on disk ends here
            if not same:
                differing.add(name)
    if differing:
        raise Differs(differing)
    sums = {
        name: slot_sums(window, manifest.slots.get(name), known.get(name, {}))
        for name, window in windows.items()
    }
    return Kept(sums, stamps)


def assemble(name: str, slots: Slots, sources: Iterable[Source], commits: Commits) -> np.ndarray:
    """The whole window, from the commits that hold its slots.

    Raises:
        Corrupt: slots are missing or damaged.
    """
    found = [
        (piece, piece.held.stored(slots))
        for piece in pieces(name, slots.start, slots.end, sources, path=commits.backend.name())
    ]
    for piece, stored in found:
        # Before memory is taken: a shape must not promise what is not there.
        commits.check_sizes(piece.commit, stored, name)
    try:
        window = np.empty(slots.shape, np.dtype(slots.dtype).newbyteorder("<"))
    except MemoryError as error:
        raise Corrupt(
            f"{commits.backend.name()}: window {name!r} of shape {slots.shape} does not fit in "
            "memory. Free some, or load it elsewhere."
        ) from error
    # One row for each index of the axes before that of the slots: there, slots are contiguous.
    rows = window.reshape(math.prod(slots.shape[: slots.axis]), -1).view(np.uint8)
    slot = rows.shape[1] // max(1, slots.shape[slots.axis])  # bytes
    for piece, stored in found:
        start, stop = (at - slots.start for at in (piece.low, piece.high))
        buffers = [*rows[:, start * slot : stop * slot]]
        before, after = piece.low - piece.held.first, piece.held.end - piece.high
        if before or after:  # slots beside those, which are read for the checksum alone
            beside = np.empty((len(rows), (before + after) * slot), np.uint8)
            sides = zip(
                beside[:, : before * slot], buffers, beside[:, before * slot :], strict=True
            )
            buffers = [part for parts in sides for part in parts if len(part)]
        commits.fill(buffers, piece.commit, stored, name)
    return window


def from_slot(window: Window, first: int) -> np.ndarray:
    """The slots of a window from number `first` on."""
    count = window.data.shape[window.axis]
    return along(window.data, window.axis, count - (window.end - first), count)


def along(array: np.ndarray, axis: int, start: int, stop: int) -> np.ndarray:
    """The view [start, stop) of an array along an axis."""
    return array[(slice(None),) * axis + (slice(start, stop),)]


def _start(window: Window) -> int:
    """The number of the oldest slot in a window."""
    return window.end - int(window.data.shape[window.axis])


def _continues(window: Window, slots: Slots) -> bool:
    """Whether a window can be the parent's with slots added."""
    shape = window.data.shape
    return (
        window.axis == slots.axis
        and dtype_name(window.data.dtype) == slots.dtype
        and len(shape) == len(slots.shape)
        and _others(shape, slots.axis) == _others(slots.shape, slots.axis)
        and window.end >= slots.end
    )


def _others(shape: Iterable[int], axis: int) -> tuple[int, ...]:
    shape = tuple(shape)
    return shape[:axis] + shape[axis + 1 :]


def _equal(name: str, window: Window, slots: Slots, piece: Piece, commits: Commits) -> bool:
    """Whether the disk has for a piece what the window has."""
    start = _start(window)
    given = along(window.data, window.axis, piece.low - start, piece.high - start)
    low, high = piece.low - piece.held.first, piece.high - piece.held.first
    stored = piece.held.stored(slots)
    # Bits, not numbers: NaN equals NaN, and −0 does not equal 0.
    bits = np.dtype(f"<u{given.dtype.itemsize}")
    given = given.astype(given.dtype.newbyteorder("<"), copy=False).view(bits)
    if slots.axis == 0:
        return all(
            np.array_equal(rows.view(bits), given[i - low : j - low])
            for i, j, rows in commits.rows(piece.commit, stored, name, start=low, stop=high)
        )
    return all(
        np.array_equal(along(rows, slots.axis, low, high).view(bits), given[i:j])
        for i, j, rows in commits.rows(piece.commit, stored, name, start=0, stop=stored.shape[0])
    )
