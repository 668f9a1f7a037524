"""Checksums of slots, to detect changed slots without reading stored ones back.

A writer remembers a checksum for every few slots of its newest commit, and the stamps of the files
that hold the slots. While neither changes, the stored slots equal those of the window.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType

import numpy as np

from memory_store.format.json import crc32c
from memory_store.format.manifest import WindowSpec
from memory_store.types import Commit, Window

MAX_CHECKSUMS = 64  # per window; with more, the calls take longer than the bytes

Checksums = Mapping[tuple[int, int], int]  # (first, end) → crc32c of the slots [first, end)


@dataclass(frozen=True)
class SlotChecksums:
    """The slot checksums that a writer remembers of its newest commit.

    Attributes:
        checksums: of each window, by name.
        stamps: of the commits that hold the slots; see `Backend.stamp`.
    """

    checksums: Mapping[str, Checksums] = field(default_factory=dict)
    stamps: Mapping[Commit, object] = field(default_factory=dict)


def slot_checksums(
    window: Window, before: WindowSpec | None = None, known: Checksums = MappingProxyType({})
) -> dict[tuple[int, int], int]:
    """Checksums of all slots of a window.

    The ranges are chosen so that the next window begins at the start of a range: streams append
    slots by the segment, so every increment is a multiple of some number of slots.

    Args:
        window: the window.
        before: the window of the parent commit.
        known: checksums of slots that are still in the window; they are not computed again.
    """
    rows, start = _rows(window)
    added = window.end - (before.end if before is not None else start)
    step = math.gcd(added, *[end - first for first, end in known][:-1])
    count = window.end - start
    step = max(step or count, -(-count // MAX_CHECKSUMS), 1)
    ranges = pairwise([*range(start, window.end, step), window.end])
    return {
        each: known[each] if each in known else _checksum(rows, start, *each) for each in ranges
    }


def covers(checksums: Checksums, window: Window) -> bool:
    """Whether checksums are comparable with a window: it begins at the start of a range."""
    start = window.end - window.data.shape[window.axis]
    return not any(first < start < end for first, end in checksums)


def unchanged(window: Window, checksums: Checksums) -> bool:
    """Whether the slots of a window match their checksums; dropped slots are ignored."""
    rows, start = _rows(window)
    return all(
        _checksum(rows, start, first, end) == expected
        for (first, end), expected in checksums.items()
        if first >= start
    )


def _rows(window: Window) -> tuple[np.ndarray, int]:
    """The bytes of a window, uint8 [rows, slots, bytes per slot and row], and its first slot."""
    data, axis = window.data, window.axis
    start = window.end - data.shape[axis]
    shape = (math.prod(data.shape[:axis]), data.shape[axis], math.prod(data.shape[axis + 1 :]))
    data = data.astype(data.dtype.newbyteorder("<"), copy=False).reshape(shape)
    if not all(row.flags.c_contiguous for row in data):
        data = np.ascontiguousarray(data)
    return data.view(np.uint8), start


def _checksum(rows: np.ndarray, start: int, first: int, end: int) -> int:
    checksum = 0
    for row in rows[:, first - start : end - start]:
        checksum = crc32c(row, checksum)
    return checksum
