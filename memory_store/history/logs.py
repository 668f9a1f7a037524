"""Reading logs: the rows that a commit and its ancestors brought for a range of positions.

Any commit after a position may hold rows of it, so the walk visits every commit from the newest to
the beginning of the range, or until all of its positions have rows. It reads manifests only, and
remembers of each what the next walk needs.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from memory_store.backend import Backend, Extent
from memory_store.errors import Corrupt
from memory_store.format.chunks import chunk_bytes, chunk_rows, extents, read_chunk
from memory_store.format.manifest import Manifest
from memory_store.format.names import PAST, past_key
from memory_store.format.zarr import ITEMSIZE, StoredArray
from memory_store.history.reading import Commits, array_folder
from memory_store.types import Commit

MAX_ROWS = 2**16  # of a piece
MAX_BATCH = 2**25  # bytes that are read concurrently where reads are slow
MAX_KNOWN = 2**14  # commits that are remembered, about 1 KB each


@dataclass(frozen=True)
class _Stored:
    """The rows of a log that one commit brought.

    Attributes:
        commit: the commit.
        key: of the array that holds them, in the commit or in what a deleted snapshot left.
        spec: its location, shape and checksums.
        begin: position of its first row.
    """

    commit: Commit
    key: str
    spec: StoredArray
    begin: int


@dataclass(frozen=True)
class _Part:
    """The rows [low, high) of the stream, a part of the stored ones."""

    stored: _Stored
    low: int
    high: int


_Known = tuple[Commit | None, dict[str, _Stored]]  # the parent, and the rows by log


class Logs:
    """The logs of a session, except the token log; see `walk.tokens`."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits
        self._known: dict[Commit, _Known] = {}

    def rows(
        self, ref: Commit, name: str, start: int, stop: int
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
        return self._pieces(self._parts(ref, name, start, stop), name)

    def spans(self, ref: Commit, name: str) -> list[tuple[int, int]]:
        """The ranges of positions that have rows; see `MemoryStore.log_spans`."""
        spans: list[tuple[int, int]] = []
        for part in self._parts(ref, name, 0, ref.position):
            if spans and spans[-1][1] == part.low:
                spans[-1] = spans[-1][0], part.high
            else:
                spans.append((part.low, part.high))
        return spans

    def row_sizes(self, ref: Commit) -> dict[str, int]:
        """The logs that have rows, and the bytes of a row; see `MemoryStore.logs`."""
        found: dict[str, int] = {}
        commit: Commit | None = ref
        while commit is not None:
            parent, logs = self._known.get(commit) or self._read(commit, self._commits.manifest)
            for name, stored in logs.items():
                shape, dtype = stored.spec.shape, stored.spec.dtype
                found.setdefault(name, math.prod(shape[1:]) * ITEMSIZE[dtype])
            commit = parent
        return found

    def _parts(self, ref: Commit, name: str, start: int, stop: int) -> list[_Part]:
        """Where the rows [start, stop) lie, ascending; the newest rows count."""
        past = set(self._commits.backend.files(PAST))
        found, missing = [], _Missing(start, stop)
        commit: Commit | None = ref
        # The rows of a commit end at its position or before.
        while commit is not None and commit.position > start and missing:
            parent, logs = self._known.get(commit) or self._read(commit, self._commits.manifest)
            if name in logs and past_key(commit.name).rpartition("/")[2] in past:
                # What is known of it may be older than the collection that deleted its rows.
                parent, logs = self._read(commit, self._commits.read)
            if name in logs:
                stored = logs[name]
                end = stored.begin + stored.spec.shape[0]
                for low, high in missing.take(stored.begin, end):
                    found.append(_Part(stored, low, high))
            commit = parent
        return sorted(found, key=lambda part: part.low)

    def _pieces(self, parts: list[_Part], name: str) -> Iterator[tuple[int, np.ndarray]]:
        for batch in _batches(parts):
            wanted = [extent for *_, extent in batch]
            with self._commits.backend.prefetch(wanted.copy) as backend:
                for part, index, _ in batch:
                    rows = self._chunk(part.stored, name, index, backend)
                    if rows is None:
                        continue
                    first = part.stored.begin + chunk_rows(part.stored.spec, index)[0]
                    low, high = max(part.low, first), min(part.high, first + len(rows))
                    for at in range(low, high, MAX_ROWS):
                        yield at, rows[at - first : min(high, at + MAX_ROWS) - first]

    def _chunk(self, stored: _Stored, name: str, index: int, backend: Backend) -> np.ndarray | None:
        """The rows of a chunk, also if a collection has moved them; None if it deleted them."""
        try:
            return read_chunk(backend, stored.key, stored.spec, index)
        except Corrupt:
            _, logs = self._read(stored.commit, self._commits.read)
            if name not in logs:
                return None
            if logs[name].key == stored.key:
                raise
            return read_chunk(backend, logs[name].key, logs[name].spec, index)

    def _read(self, commit: Commit, read: Callable[[Commit], Manifest]) -> _Known:
        manifest, logs = read(commit), dict[str, _Stored]()
        for name, begin in manifest.logs.items():
            if manifest.retained == "all":
                key, spec = array_folder(commit, name), manifest.arrays[name]
                logs[name] = _Stored(commit, key, spec, begin)
            elif manifest.retained == "log":
                logs[name] = _Stored(commit, *self._commits.in_log(commit, name), begin)
        while len(self._known) >= MAX_KNOWN:
            self._known.pop(next(iter(self._known)), None)
        self._known[commit] = manifest.parent, logs
        return manifest.parent, logs


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


def _batches(parts: list[_Part]) -> Iterator[list[tuple[_Part, int, Extent]]]:
    """The chunks to read, with their indices and extents, as many at a time as memory allows."""
    batch: list[tuple[_Part, int, Extent]] = []
    size = 0
    for part in parts:
        stored = part.stored
        nbytes = chunk_bytes(stored.spec)
        for index, extent in enumerate(extents(stored.key, stored.spec)):
            first, end = (stored.begin + row for row in chunk_rows(stored.spec, index))
            if first >= part.high or end <= part.low:
                continue
            if batch and size + nbytes > MAX_BATCH:
                yield batch
                batch, size = [], 0
            batch.append((part, index, extent))
            size += nbytes
    if batch:
        yield batch
