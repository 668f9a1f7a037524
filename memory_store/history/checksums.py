"""Whether a window's slots are still what was committed, told without reading them back.

A writer remembers of its newest commit a checksum for every few slots, and how the files looked
that hold them. While neither has changed, what the disk has is what the window has.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType

import numpy as np

from memory_store.format.json import crc32c
from memory_store.format.manifest import Slots
from memory_store.types import Commit, Window

MOST = 64  # checksums of a window; with more, calls would cost more than bytes

Sums = Mapping[tuple[int, int], int]  # crc32c of the slots [first, end), by these numbers


@dataclass(frozen=True)
class Kept:
    """What a writer knows of the windows of a commit that it wrote.

    Attributes:
        sums: of each window.
        stamps: of the files of the commits that hold the slots; see `Backend.stamp`.
    """

    sums: Mapping[str, Sums] = field(default_factory=dict)
    stamps: Mapping[Commit, object] = field(default_factory=dict)


def slot_sums(
    window: Window, before: Slots | None = None, known: Sums = MappingProxyType({})
) -> dict[tuple[int, int], int]:
    """Checksums of all slots of a window.

    Args:
        window: the window.
        before: the one that it continues.
        known: those of slots that the window still has.

    The next window shall begin where a checksum does. Streams add slots by the segment, so what is
    added at a time is a multiple of some number of slots.
    """
    rows, start = _rows(window)
    added = window.end - (before.end if before is not None else start)
    step = math.gcd(added, *[end - first for first, end in known][:-1])
    count = window.end - start
    step = max(step or count, -(-count // MOST), 1)
    ranges = pairwise([*range(start, window.end, step), window.end])
    return {each: known[each] if each in known else _sum(rows, start, *each) for each in ranges}


def covers(sums: Sums, window: Window) -> bool:
    """Whether checksums can be compared with a window: it does not begin within one."""
    start = window.end - window.data.shape[window.axis]
    return not any(first < start < end for first, end in sums)


def unchanged(window: Window, sums: Sums) -> bool:
    """Whether the slots that checksums are of are the same in a window, but for those it lost."""
    rows, start = _rows(window)
    return all(
        _sum(rows, start, first, end) == found
        for (first, end), found in sums.items()
        if first >= start
    )


def _rows(window: Window) -> tuple[np.ndarray, int]:
    """The bytes of a window, [rows, slots, bytes of a slot in a row], and its first slot."""
    data, axis = window.data, window.axis
    start = window.end - data.shape[axis]
    shape = (math.prod(data.shape[:axis]), data.shape[axis], math.prod(data.shape[axis + 1 :]))
    data = data.astype(data.dtype.newbyteorder("<"), copy=False).reshape(shape)
    if not all(row.flags.c_contiguous for row in data):
        data = np.ascontiguousarray(data)
    return data.view(np.uint8), start


def _sum(rows: np.ndarray, start: int, first: int, end: int) -> int:
    found = 0
    for row in rows[:, first - start : end - start]:
        found = crc32c(row, found)
    return found
