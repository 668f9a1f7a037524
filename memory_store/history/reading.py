"""Reading commits: manifests, arrays, token ids, and what the store still has of each commit."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace

import numpy as np

from memory_store.backend import Backend, Extent
from memory_store.errors import Corrupt, NotFound
from memory_store.format.chunks import extents, fill, memory, read_array, read_rows
from memory_store.format.manifest import Manifest, record
from memory_store.format.manifest_reader import read_manifest
from memory_store.format.names import (
    COMMITS,
    LOG,
    PAST,
    RECORD,
    TOKENS,
    commit_key,
    document_key,
    is_packed,
    log_key,
    past_key,
    record_key,
)
from memory_store.format.packing import placed
from memory_store.format.zarr import ArraySpec, StoredArray
from memory_store.history.checksums import Checksums, SlotChecksums
from memory_store.types import Commit

MAX_CACHED = 64  # manifests in memory
MAX_GATHERED = 2**23  # bytes; a copy of a larger array takes too much memory
ALIGNED = 64  # bytes


class Scratch:
    """A reusable buffer: allocating fresh pages takes longer than filling them."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def take(self, nbytes: int) -> np.ndarray:
        """At least `nbytes` bytes; they overwrite those of an earlier call."""
        if len(self._buffer) < nbytes:
            self._buffer = np.empty(nbytes, np.uint8)
        return self._buffer

    def gathered(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays, made contiguous unless large; the next call overwrites them.

        A contiguous array is hashed and written with one call.
        """
        gathered, at = dict(arrays), 0
        small = {
            name: array
            for name, array in arrays.items()
            if array.nbytes <= MAX_GATHERED and not array.flags.c_contiguous
        }
        buffer = self.take(sum(array.nbytes + ALIGNED for array in small.values()))
        for name, array in small.items():
            gathered[name] = buffer[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
            gathered[name][...] = array
            at += -(-array.nbytes // ALIGNED) * ALIGNED
        return gathered


class Commits:
    """The commits of a session; every manifest is checked against its address."""

    def __init__(self, backend: Backend, session: str) -> None:
        self.backend = backend
        self.session = session
        # Commits never change; writers and long walks read the same ones repeatedly.
        self._manifests: dict[Commit, Manifest] = {}
        self._written: tuple[Commit, SlotChecksums] | None = None
        self._sources: dict[Commit, list[str]] = {}
        self._scratch: list[Scratch] = []  # unused buffers

    @contextmanager
    def scratch(self) -> Iterator[Scratch]:
        """A buffer that is valid within the `with` block."""
        try:
            scratch = self._scratch.pop()
        except IndexError:
            scratch = Scratch()
        yield scratch
        self._scratch[:] = [scratch]  # one is enough

    def read(self, commit: Commit) -> Manifest:
        """The manifest of a commit, read from the medium.

        Raises:
            Corrupt: the manifest is missing, damaged, or that of another commit.
        """
        return read_manifest(self.backend, commit, self.session)

    def manifest(self, commit: Commit) -> Manifest:
        """The manifest of a commit, read from the medium unless it is cached.

        Raises:
            Corrupt: the manifest is missing, damaged, or that of another commit.
        """
        return self._manifests.get(commit) or self._cache(commit, self.read(commit))

    def _cache(self, commit: Commit, manifest: Manifest) -> Manifest:
        while len(self._manifests) >= MAX_CACHED:
            self._manifests.pop(next(iter(self._manifests)), None)
        self._manifests[commit] = manifest
        return manifest

    def remember(self, commit: Commit, manifest: Manifest, checksums: SlotChecksums) -> None:
        """Cache the manifest of a new commit, and the checksums of its slots."""
        self._cache(commit, manifest)
        stamps = {**checksums.stamps, commit: self.stamp(commit)}
        self._written = commit, replace(checksums, stamps=stamps)

    def known_checksums(
        self, commit: Commit, stamps: Mapping[Commit, object]
    ) -> Mapping[str, Checksums]:
        """The remembered checksums of a commit's slots, by window; empty if none are valid.

        Args:
            commit: its address.
            stamps: the current stamps of all commits that hold its slots.
        """
        if self._written is None or self._written[0] != commit:
            return {}
        remembered = self._written[1]
        same = all(
            stamp is not None and remembered.stamps.get(holder) == stamp
            for holder, stamp in stamps.items()
        )
        return remembered.checksums if same else {}

    def stamp(self, commit: Commit) -> object:
        """The stamp of a commit's file; None if there is none. See `Backend.stamp`."""
        return self.backend.stamp(commit_key(commit.name)) if is_packed(commit.name) else None

    @contextmanager
    def prefetch(
        self, wanted: Callable[[], Iterable[tuple[Commit, StoredArray, str]]]
    ) -> "Iterator[Commits]":
        """These commits while the arrays `wanted()` are read; see `Backend.prefetch`."""

        def places() -> Iterator[Extent]:
            for commit, spec, name in wanted():
                yield from extents(array_folder(commit, name), spec)

        with self.backend.prefetch(places) as backend:
            reader = copy(self)
            reader.backend = backend
            yield reader

    def array(
        self,
        commit: Commit,
        spec: StoredArray,
        name: str,
        *,
        allocate: Callable[[int], np.ndarray] = memory,
    ) -> np.ndarray:
        """An array of a commit, checked against `spec`."""
        return read_array(self.backend, array_folder(commit, name), spec, allocate)

    def fill(
        self, buffers: Sequence[np.ndarray], commit: Commit, spec: StoredArray, name: str
    ) -> None:
        """Read an array of a commit into buffers; see `chunks.fill`."""
        fill(buffers, self.backend, array_folder(commit, name), spec)

    def token_ids(self, commit: Commit) -> np.ndarray:
        """The token ids read since the parent, also of a deleted snapshot.

        Raises:
            NotFound: the token ids were deleted.
        """
        spec = self.manifest(commit).arrays[TOKENS]
        try:
            return self.array(commit, spec, TOKENS)
        except Corrupt:
            if self.backend.exists(record_key(commit.name)):
                return read_array(self.backend, *self.in_log(commit, TOKENS))
            if self.backend.exists(past_key(commit.name)):
                raise NotFound(
                    f"{self.backend.name(past_key(commit.name))}: the token ids up to "
                    f"{commit.position} were deleted by gc. Use a later start."
                ) from None
            raise

    def in_log(self, commit: Commit, name: str) -> tuple[str, ArraySpec]:
        """The key and the location of an array that a deleted snapshot left in `log/`."""
        manifest, log = self.manifest(commit), log_key(commit.name)
        if not is_packed(commit.name):
            return log, manifest.arrays[name]  # of schema 1: token ids alone
        specs, _ = placed(manifest.logged, len(record(manifest)), RECORD)
        return f"{log}/{name}", specs[name]

    def sources_of(self, kept: Iterable[Commit]) -> list[list[str]]:
        """For each of the kept commits, the names of the other commits that hold its slots.

        The result is cached for the next call, because most kept commits are kept again.
        """
        self._sources = {
            commit: self._sources.get(commit)
            or [source.commit.name for source in self.read(commit).window]
            for commit in kept
        }
        return list(self._sources.values())

    def is_loadable(self, commit: Commit) -> bool:
        """Whether the snapshot exists: neither it nor a commit that holds its slots was deleted."""
        manifest = self.read(commit)
        if manifest.retained != "all":
            return False
        keys = (document_key(source.commit.name) for source in manifest.window)
        return all(map(self.backend.exists, keys))

    def was_deleted(self, commit: Commit) -> bool:
        """Whether the snapshot was deleted by `gc`: the commit, or one that holds its slots.

        A deleted commit leaves a record. A missing commit without a record is corruption.
        """
        manifest = self.read(commit)
        return manifest.retained != "all" or any(
            self._is_record(source.commit) for source in manifest.window
        )

    def _is_record(self, commit: Commit) -> bool:
        exists = self.backend.exists
        return not exists(document_key(commit.name)) and (
            exists(record_key(commit.name)) or exists(past_key(commit.name))
        )

    def loadable(self, commits: Iterable[Commit]) -> list[bool]:
        """`is_loadable` of several commits."""
        existing = self.names()
        some_deleted = bool(self.logged() or self.backend.files(PAST))
        return [
            commit.name in existing and (not some_deleted or self.is_loadable(commit))
            for commit in commits
        ]

    def size(self, commit: Commit) -> int:
        """Bytes of the arrays that are stored in a commit and still exist."""
        manifest = self.read(commit)
        kept = {"all": manifest.arrays, "log": manifest.logged, "record": {}}[manifest.retained]
        return sum(spec.nbytes for spec in kept.values())

    def name(self, commit: Commit) -> str:
        """The path or URL of a commit, for messages."""
        return self.backend.name(commit_key(commit.name))

    def names(self) -> set[str]:
        """The names in the folder of commits."""
        return {*self.backend.folders(COMMITS), *self.backend.files(COMMITS)}

    def logged(self) -> set[str]:
        """The names of the deleted snapshots whose token ids and rows of logs still exist."""
        return {*self.backend.folders(LOG), *self.backend.files(LOG)}

    def rows(
        self, commit: Commit, spec: StoredArray, name: str, *, start: int, stop: int
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """Rows of an array of a commit, without checksums; see `chunks.read_rows`."""
        return read_rows(self.backend, array_folder(commit, name), spec, start, stop)

    def check_sizes(self, commit: Commit, spec: StoredArray, name: str) -> None:
        """Check that the files are as large as the shape of an array claims.

        Raises:
            Corrupt: a file is missing or too short.
        """
        for extent in extents(array_folder(commit, name), spec):
            self.backend.check_size(extent)


def array_folder(commit: Commit, name: str) -> str:
    """The key of an array of a commit, in a folder or in a file."""
    return f"{commit_key(commit.name)}/{name}"
