"""Which slots a commit writes, and how the windows are put together again.

Each commit holds the slots [first, end) that its parent lacked. A window is rebuilt from its newest
slot backwards: this commit's slots, then those before them from the commit that holds them, until
the oldest slot is reached.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from memory_store.arrays import digest
from memory_store.commits import Commits
from memory_store.errors import Corrupt, StoreError
from memory_store.manifest import MAX_WINDOW, Held, Slots, Source
from memory_store.protocol import Commit, Window
from memory_store.zarrformat import Stored


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
        first: name → first slot of the window that the commit itself holds.
        window: the other commits that its windows need, oldest first.
    """

    first: Mapping[str, int]
    window: tuple[Source, ...]


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
    windows: Mapping[str, Window],
    parent: Commit | None,
    commits: Commits,
    digests: Mapping[str, Sequence[str]],
) -> Plan:
    """What to write so that `windows` can be rebuilt from at most MAX_WINDOW commits.

    Slots that the parent has are compared with what is stored; a window in which one differs, or
    cannot be read, is written whole. What is loaded is thus always what was committed. Where
    reading is slow, slots are compared by their digests, if `commits` remembers the parent's.

    Args:
        windows: what is to be committed.
        parent: the commit that they continue.
        commits: reads what is stored.
        digests: of the slots of each window, where there are any to compare with.
    """
    whole = {name: window.end - slot_count(window) for name, window in windows.items()}
    if parent is None:
        return Plan(whole, ())
    manifest = commits.manifest(parent)
    sources = manifest.sources(parent)
    kept: dict[str, list[Piece]] = {}
    for name, window in windows.items():
        slots = manifest.slots.get(name)
        if slots is not None and _continues(window, slots):
            with suppress(Corrupt):
                low = min(whole[name], slots.end)
                kept[name] = pieces(name, low, slots.end, sources, path=commits.name(parent))
    first = dict(whole)
    needed: dict[Commit, dict[str, Held]] = {}
    remembered = commits.digests(parent)

    def wanted() -> Iterator[tuple[Commit, Stored, str]]:
        for name in kept.keys() - remembered.keys():
            for piece in kept[name]:
                yield piece.commit, piece.held.stored(manifest.slots[name]), name

    with commits.ahead(wanted) as reader:
        for name, found in kept.items():
            window, slots = windows[name], manifest.slots[name]
            try:
                if name in remembered:
                    old = remembered[name][whole[name] - slots.start :]
                    unchanged = digests[name][: len(old)] == old
                else:
                    unchanged = all(_equal(name, window, slots, piece, reader) for piece in found)
            except StoreError:
                unchanged = False  # the caller has the slots: damage on disk ends here
            if unchanged:
                first[name] = max(slots.end, whole[name])
                for piece in found:
                    needed.setdefault(piece.commit, {})[name] = piece.held
    if len(needed) >= MAX_WINDOW:
        return Plan(whole, ())
    window_sources = [
        Source(source.commit, needed[source.commit])
        for source in reversed(sources)
        if source.commit in needed
    ]
    return Plan(first, tuple(window_sources))


def assemble(name: str, slots: Slots, sources: Iterable[Source], commits: Commits) -> np.ndarray:
    """The whole window, from the commits that hold its slots.

    Raises:
        Corrupt: slots are missing or damaged.
    """
    found = pieces(name, slots.start, slots.end, sources, path=commits.backend.name())
    for piece in found:
        # Before memory is taken: a shape must not promise what is not there.
        commits.check_sizes(piece.commit, piece.held.stored(slots), name)
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
    for piece in found:
        start, stop = (at - slots.start for at in (piece.low, piece.high))
        # The commit may hold slots beside those, which are read for the checksum alone.
        beside = np.empty(
            (len(rows), piece.held.end - piece.held.first - (stop - start), slot), np.uint8
        )
        n_before = piece.low - piece.held.first
        buffers = [
            buffer
            for row, aside in zip(rows, beside, strict=True)
            for buffer in (
                aside[:n_before].reshape(-1),
                row[start * slot : stop * slot],
                aside[n_before:].reshape(-1),
            )
            if len(buffer)
        ]
        commits.fill(buffers, piece.commit, piece.held.stored(slots), name)
    return window


def slot_digests(window: Window) -> list[str]:
    """sha256 of each slot of a window, oldest first."""
    return [digest(slot) for slot in np.moveaxis(window.data, window.axis, 0)]


def slot_count(window: Window) -> int:
    """Slots in a window."""
    return int(window.data.shape[window.axis])


def along(array: np.ndarray, axis: int, start: int, stop: int) -> np.ndarray:
    """The view [start, stop) of an array along an axis."""
    return array[(slice(None),) * axis + (slice(start, stop),)]


def _continues(window: Window, slots: Slots) -> bool:
    """Whether a window can be the parent's with slots added."""
    shape = window.data.shape
    return (
        window.axis == slots.axis
        and window.data.dtype.name == slots.dtype
        and len(shape) == len(slots.shape)
        and _others(shape, slots.axis) == _others(slots.shape, slots.axis)
        and window.end >= slots.end
    )


def _others(shape: Iterable[int], axis: int) -> tuple[int, ...]:
    shape = tuple(shape)
    return shape[:axis] + shape[axis + 1 :]


def _equal(name: str, window: Window, slots: Slots, piece: Piece, commits: Commits) -> bool:
    """Whether the disk has for a piece what the window has."""
    start = window.end - slot_count(window)
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
