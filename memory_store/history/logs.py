"""Reading logs: the rows that a commit and its ancestors brought for a range of positions.

Any commit after a position may hold rows of it, so the walk visits every commit from the newest to
the beginning of the range, or until all of its positions have rows. It reads manifests only.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from memory_store.backend import Backend, Extent
from memory_store.errors import Corrupt
from memory_store.format.chunks import chunk_bytes, chunk_rows, extents, read_chunk
from memory_store.format.names import PAST, past_key, record_key
from memory_store.format.zarr import StoredArray
from memory_store.history.reading import Commits, array_folder
from memory_store.types import Commit

MAX_ROWS = 2**16  # of a piece
MAX_BATCH = 2**25  # bytes that are read concurrently where reads are slow


@dataclass(frozen=True)
class _Held:
    """The rows [low, high) of the stream, a part of those that a commit holds.

    Attributes:
        commit: the commit.
        key: of the array that holds them, in the commit or in what a deleted snapshot left.
        spec: its location, shape and checksums.
        begin: position of its first row.
        low: position of the first of these rows.
        high: position after the last of these rows.
    """

    commit: Commit
    key: str
    spec: StoredArray
    begin: int
    low: int
    high: int


def log(
    ref: Commit, name: str, commits: Commits, *, start: int, stop: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of a log at positions [start, stop), in pieces; see `MemoryStore.log`.

    Raises:
        ValueError: not 0 ≤ start ≤ stop ≤ the position of `ref`.
    """
    if not 0 <= start <= stop <= ref.position:
        raise ValueError(
            f"rows [{start}, {stop}) of a commit that has read {ref.position}; allowed: "
            f"0 ≤ start ≤ stop ≤ {ref.position}"
        )
    return _pieces(_held(ref, name, commits, start, stop), name, commits)


def log_spans(ref: Commit, name: str, commits: Commits) -> list[tuple[int, int]]:
    """The ranges of positions that have rows, from manifests; see `MemoryStore.log_spans`."""
    spans: list[tuple[int, int]] = []
    for held in _held(ref, name, commits, 0, ref.position):
        if spans and spans[-1][1] == held.low:
            spans[-1] = spans[-1][0], held.high
        else:
            spans.append((held.low, held.high))
    return spans


def _held(ref: Commit, name: str, commits: Commits, start: int, stop: int) -> list[_Held]:
    """The commits' parts of the rows [start, stop), ascending; the newest rows count."""
    past = set(commits.backend.files(PAST))
    found, missing = [], _Missing(start, stop)
    commit: Commit | None = ref
    # The rows of a commit end at its position or before.
    while commit is not None and commit.position > start and missing:
        manifest = commits.manifest(commit)
        if name in manifest.logs:
            begin, spec = manifest.logs[name], manifest.arrays[name]
            if past_key(commit.name).rpartition("/")[2] in past:
                manifest = commits.read(commit)  # the cached one may be older than a collection
            if manifest.retained != "record":
                key: str = array_folder(commit, name)
                if manifest.retained == "log":
                    key, spec = commits.in_log(commit, name)
                for low, high in missing.take(begin, begin + spec.shape[0]):
                    found.append(_Held(commit, key, spec, begin, low, high))
        commit = manifest.parent
    return sorted(found, key=lambda held: held.low)


class _Missing:
    """The positions of a range that have no rows yet: disjoint ranges, ascending."""

    def __init__(self, start: int, stop: int) -> None:
        self._starts = [start] if start < stop else []
        self._stops = [stop] if start < stop else []

    def __bool__(self) -> bool:
        return bool(self._starts)

    def take(self, low: int, high: int) -> list[tuple[int, int]]:
        """Remove [low, high); returns the ranges that were removed."""
        first = bisect_right(self._stops, low)  # ends after low
        last = bisect_left(self._starts, high)  # begins at high or later
        ranges = list(zip(self._starts[first:last], self._stops[first:last], strict=True))
        left = [
            (start, stop)
            for begin, end in ranges
            for start, stop in ((begin, min(end, low)), (max(begin, high), end))
            if start < stop
        ]
        self._starts[first:last] = [start for start, _ in left]
        self._stops[first:last] = [stop for _, stop in left]
        return [(max(start, low), min(stop, high)) for start, stop in ranges]


def _pieces(found: list[_Held], name: str, commits: Commits) -> Iterator[tuple[int, np.ndarray]]:
    for batch in _batches(found):
        wanted = [extent for *_, extent in batch]
        with commits.backend.prefetch(wanted.copy) as backend:
            for held, index, _ in batch:
                rows = _chunk(held, name, index, commits, backend)
                if rows is None:
                    continue
                first = held.begin + chunk_rows(held.spec, index)[0]
                low, high = max(held.low, first), min(held.high, first + len(rows))
                for at in range(low, high, MAX_ROWS):
                    yield at, rows[at - first : min(high, at + MAX_ROWS) - first]


def _batches(found: list[_Held]) -> Iterator[list[tuple[_Held, int, Extent]]]:
    """The chunks to read, with their indices and extents, as many at a time as memory allows."""
    batch: list[tuple[_Held, int, Extent]] = []
    size = 0
    for held in found:
        nbytes = chunk_bytes(held.spec)
        for index, extent in enumerate(extents(held.key, held.spec)):
            first, end = (held.begin + row for row in chunk_rows(held.spec, index))
            if first >= held.high or end <= held.low:
                continue
            if batch and size + nbytes > MAX_BATCH:
                yield batch
                batch, size = [], 0
            batch.append((held, index, extent))
            size += nbytes
    if batch:
        yield batch


def _chunk(
    held: _Held, name: str, index: int, commits: Commits, backend: Backend
) -> np.ndarray | None:
    """The rows of a chunk, also if a collection moved them meanwhile; None if it deleted them."""
    try:
        return read_chunk(backend, held.key, held.spec, index)
    except Corrupt:
        if commits.backend.exists(record_key(held.commit.name)):
            return read_chunk(commits.backend, *commits.in_log(held.commit, name), index)
        if commits.backend.exists(past_key(held.commit.name)):
            return None
        raise
