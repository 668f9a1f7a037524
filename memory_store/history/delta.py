"""Delta encoding of windows: which slots a commit stores, and how a window is reassembled.

A commit stores the slots [first, end) that its parent lacks. A window is reassembled from its
newest slot backwards: the slots of this commit, then older slots from the commits that hold them.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from memory_store.errors import Corrupt, StoreError
from memory_store.format.manifest import MAX_WINDOW, Source, StoredSlots, WindowSpec
from memory_store.format.zarr import StoredArray, dtype_name
from memory_store.history.checksums import SlotChecksums, covers, slot_checksums, unchanged
from memory_store.history.reading import Commits
from memory_store.types import Commit, Window


@dataclass(frozen=True)
class Piece:
    """The slots [low, high) of a window, a part of the slots that a commit holds."""

    commit: Commit
    held: StoredSlots
    low: int
    high: int


@dataclass(frozen=True)
class Plan:
    """The slots that a commit writes and reuses.

    Attributes:
        parent: the commit that it continues.
        reused: name → stored slots that are not written again.
        first: name → number of the first slot that the commit writes.
        window: the other commits that hold slots of its windows, oldest first.
    """

    parent: Commit | None
    reused: Mapping[str, list[Piece]]
    first: Mapping[str, int]
    window: tuple[Source, ...]


class SlotsChanged(Exception):
    """Slots differ from those that were committed.

    Attributes:
        windows: the names of the windows with such slots.
    """

    def __init__(self, windows: Set[str]) -> None:
        super().__init__(", ".join(sorted(windows)))
        self.windows = windows


def pieces(
    name: str, start: int, end: int, sources: Iterable[Source], *, path: object
) -> list[Piece]:
    """The pieces that make up the slots [start, end) of a window, newest first.

    Args:
        name: the window.
        start: number of the first slot.
        end: number after the last slot.
        sources: the commits that hold the slots, newest first.
        path: the file that lists the sources, for messages.

    Raises:
        Corrupt: the sources do not hold all of the slots.
    """
    result, low = [], end
    for source in sources:
        held = source.held.get(name)
        if held is not None and held.first < low <= held.end and start < low:
            result.append(Piece(source.commit, held, max(held.first, start), low))
            low = result[-1].low
    if low != start:
        raise Corrupt(
            f"{path}: none of the listed commits holds the slots {start} to {low} of window "
            f"{name!r}. Load an older commit."
        )
    return result


def plan(
    windows: Mapping[str, Window], parent: Commit | None, commits: Commits, rewrite: Set[str]
) -> Plan:
    """Choose the slots to write so that at most MAX_WINDOW commits hold each window.

    The plan assumes that the slots of the parent are unchanged; `confirm` verifies it.

    Args:
        windows: the windows to be committed.
        parent: the commit that they continue.
        commits: the stored commits.
        rewrite: the names of windows to be written whole.
    """
    first = {name: _start(window) for name, window in windows.items()}
    if parent is None:
        return Plan(None, {}, first, ())
    manifest = commits.manifest(parent)
    sources = manifest.sources(parent)
    stored: dict[str, list[Piece]] = {}
    needed: dict[Commit, dict[str, StoredSlots]] = {}
    for name, window in windows.items():
        slots = manifest.slots.get(name)
        if slots is not None and name not in rewrite and _continues(window, slots):
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


def confirm(todo: Plan, windows: Mapping[str, Window], commits: Commits) -> SlotChecksums:
    """Verify that the reused slots of a plan equal those that were committed.

    They are compared with remembered checksums if the files are unchanged, and with the stored
    slots otherwise. A loaded snapshot therefore always equals the committed one.

    Args:
        todo: the plan.
        windows: the windows to be committed.
        commits: the stored commits.

    Returns:
        The checksums to remember for the next commit.

    Raises:
        SlotsChanged: some slots differ, or cannot be read.
    """
    if todo.parent is None:
        return SlotChecksums({name: slot_checksums(window) for name, window in windows.items()})
    manifest = commits.manifest(todo.parent)
    holders = {piece.commit for reused_pieces in todo.reused.values() for piece in reused_pieces}
    stamps = {commit: commits.stamp(commit) for commit in holders}
    known = {
        name: checksums
        for name, checksums in commits.known_checksums(todo.parent, stamps).items()
        if name in todo.reused and covers(checksums, windows[name])
    }

    def wanted() -> Iterator[tuple[Commit, StoredArray, str]]:
        for name in todo.reused.keys() - known.keys():
            for piece in todo.reused[name]:
                yield piece.commit, piece.held.as_array(manifest.slots[name]), name

    differing = {
        name for name, checksums in known.items() if not unchanged(windows[name], checksums)
    }
    with commits.prefetch(wanted) as reader:
        for name in todo.reused.keys() - known.keys():
            slots, reused = manifest.slots[name], todo.reused[name]
            try:
                same = all(_equal(name, windows[name], slots, piece, reader) for piece in reused)
            except StoreError:
                same = False  # the caller has the slots, so a rewrite repairs the damage
            if not same:
                differing.add(name)
    if differing:
        raise SlotsChanged(differing)
    checksums = {
        name: slot_checksums(window, manifest.slots.get(name), known.get(name, {}))
        for name, window in windows.items()
    }
    return SlotChecksums(checksums, stamps)


def assemble(
    name: str, slots: WindowSpec, sources: Iterable[Source], commits: Commits
) -> np.ndarray:
    """A whole window, read from the commits that hold its slots.

    Raises:
        Corrupt: slots are missing or damaged.
    """
    stored_pieces = [
        (piece, piece.held.as_array(slots))
        for piece in pieces(name, slots.start, slots.end, sources, path=commits.backend.name())
    ]
    for piece, stored in stored_pieces:
        # Before memory is allocated: a shape may claim more than the files hold.
        commits.check_sizes(piece.commit, stored, name)
    try:
        window = np.empty(slots.shape, np.dtype(slots.dtype).newbyteorder("<"))
    except MemoryError as error:
        raise Corrupt(
            f"{commits.backend.name()}: window {name!r} of shape {slots.shape} does not fit in "
            "memory. Free some, or load the session on a larger machine."
        ) from error
    # One row per index of the axes before the slot axis: within a row, slots are contiguous.
    rows = window.reshape(math.prod(slots.shape[: slots.axis]), -1).view(np.uint8)
    slot = rows.shape[1] // max(1, slots.shape[slots.axis])  # bytes
    for piece, stored in stored_pieces:
        start, stop = (at - slots.start for at in (piece.low, piece.high))
        buffers = [*rows[:, start * slot : stop * slot]]
        before, after = piece.low - piece.held.first, piece.held.end - piece.high
        if before or after:  # adjacent slots of the array, read for its checksum only
            beside = np.empty((len(rows), (before + after) * slot), np.uint8)
            sides = zip(
                beside[:, : before * slot], buffers, beside[:, before * slot :], strict=True
            )
            buffers = [part for parts in sides for part in parts if len(part)]
        commits.fill(buffers, piece.commit, stored, name)
    return window


def from_slot(window: Window, first: int) -> np.ndarray:
    """The slots of a window from number `first` to its end."""
    count = window.data.shape[window.axis]
    return along(window.data, window.axis, count - (window.end - first), count)


def along(array: np.ndarray, axis: int, start: int, stop: int) -> np.ndarray:
    """The view [start, stop) of an array along an axis."""
    return array[(slice(None),) * axis + (slice(start, stop),)]


def _start(window: Window) -> int:
    """The number of the oldest slot in a window."""
    return window.end - int(window.data.shape[window.axis])


def _continues(window: Window, slots: WindowSpec) -> bool:
    """Whether a window can continue the parent's window `slots`."""
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


def _equal(name: str, window: Window, slots: WindowSpec, piece: Piece, commits: Commits) -> bool:
    """Whether the stored slots of a piece equal those of the window."""
    start = _start(window)
    given = along(window.data, window.axis, piece.low - start, piece.high - start)
    low, high = piece.low - piece.held.first, piece.high - piece.held.first
    stored = piece.held.as_array(slots)
    # Bits are compared, not numbers: NaN equals NaN, and −0 differs from 0.
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
