"""The commits of a session, as they are read."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace

import numpy as np

from memory_store.backend import Backend, Extent
from memory_store.errors import Corrupt, NotFound
from memory_store.format.chunks import extents, fill, memory, read_array, read_rows
from memory_store.format.manifest import Manifest
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
from memory_store.format.packing import placed, read_document
from memory_store.format.zarr import Stored
from memory_store.history.checksums import Kept, Sums
from memory_store.types import Commit

MOST_KNOWN = 64  # attributes that are kept in memory
WORTH_GATHERING = 2**23  # bytes; of more, a copy takes too much memory
ALIGNED = 64  # bytes


class Scratch:
    """Memory that is used again and again: fresh pages cost more than the bytes put into them."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def take(self, nbytes: int) -> np.ndarray:
        """At least `nbytes` bytes; what an earlier call returned is void."""
        if len(self._buffer) < nbytes:
            self._buffer = np.empty(nbytes, np.uint8)
        return self._buffer

    def gathered(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays, each in one piece unless it is large; void at the next call.

        What is in one piece is hashed and written at one go.
        """
        found, at = dict(arrays), 0
        small = {
            name: array
            for name, array in arrays.items()
            if array.nbytes <= WORTH_GATHERING and not array.flags.c_contiguous
        }
        buffer = self.take(sum(array.nbytes + ALIGNED for array in small.values()))
        for name, array in small.items():
            found[name] = buffer[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
            found[name][...] = array
            at += -(-array.nbytes // ALIGNED) * ALIGNED
        return found


class Commits:
    """Reads commits; each is checked against its address."""

    def __init__(self, backend: Backend, session: str) -> None:
        self.backend = backend
        self.session = session
        # Commits never change; a writer and long walks meet the same ones again and again.
        self._known: dict[Commit, Manifest] = {}
        self._written: tuple[Commit, Kept] | None = None
        self._needs: dict[Commit, list[str]] = {}
        self._scratch: list[Scratch] = []  # that nobody is using

    @contextmanager
    def scratch(self) -> Iterator[Scratch]:
        """Memory for a while; what is put there is void afterwards."""
        try:
            scratch = self._scratch.pop()
        except IndexError:
            scratch = Scratch()
        yield scratch
        self._scratch[:] = [scratch]  # one is enough

    def read(self, commit: Commit) -> Manifest:
        """The attributes of a commit, from the medium.

        Raises:
            Corrupt: missing, damaged, or another commit.
        """
        return read_manifest(self.backend, commit, self.session)

    def manifest(self, commit: Commit) -> Manifest:
        """The attributes of a commit, from the medium unless they are known already.

        Raises:
            Corrupt: missing, damaged, or another commit.
        """
        return self._known.get(commit) or self._keep(commit, self.read(commit))

    def _keep(self, commit: Commit, manifest: Manifest) -> Manifest:
        while len(self._known) >= MOST_KNOWN:
            self._known.pop(next(iter(self._known)), None)
        self._known[commit] = manifest
        return manifest

    def remember(self, commit: Commit, manifest: Manifest, kept: Kept) -> None:
        """Keep what was written: attributes, and of the newest commit what its slots are."""
        self._keep(commit, manifest)
        stamps = {**kept.stamps, commit: self.stamp(commit)}
        self._written = commit, replace(kept, stamps=stamps)

    def kept(self, commit: Commit, stamps: Mapping[Commit, object]) -> Mapping[str, Sums]:
        """By window, checksums of a commit's slots, if they are remembered and still hold.

        Args:
            stamps: as they are now, of all that hold slots of it.
        """
        if self._written is None or self._written[0] != commit:
            return {}
        kept = self._written[1]
        same = all(
            stamp is not None and kept.stamps.get(holder) == stamp
            for holder, stamp in stamps.items()
        )
        return kept.sums if same else {}

    def stamp(self, commit: Commit) -> object:
        """What changes when the file of a commit does, None if nothing tells."""
        return self.backend.stamp(commit_key(commit.name)) if is_packed(commit.name) else None

    @contextmanager
    def ahead(
        self, wanted: Callable[[], Iterable[tuple[Commit, Stored, str]]]
    ) -> "Iterator[Commits]":
        """These commits while the arrays `wanted()` are read; see `Backend.ahead`."""

        def places() -> Iterator[Extent]:
            for commit, spec, name in wanted():
                yield from extents(array_folder(commit, name), spec)

        with self.backend.ahead(places) as backend:
            reader = copy(self)
            reader.backend = backend
            yield reader

    def array(
        self,
        commit: Commit,
        spec: Stored,
        name: str,
        *,
        allocate: Callable[[int], np.ndarray] = memory,
    ) -> np.ndarray:
        """An array of a commit, checked against what is known of it."""
        return read_array(self.backend, array_folder(commit, name), spec, allocate)

    def fill(self, buffers: Sequence[np.ndarray], commit: Commit, spec: Stored, name: str) -> None:
        """Read an array of a commit into buffers; see `chunks.fill`."""
        fill(buffers, self.backend, array_folder(commit, name), spec)

    def token_ids(self, commit: Commit) -> np.ndarray:
        """The ids read since the parent; also where the commit's state was let go.

        Raises:
            NotFound: they were let go too.
        """
        spec = self.manifest(commit).arrays[TOKENS]
        try:
            return self.array(commit, spec, TOKENS)
        except Corrupt:
            if self.backend.exists(record_key(commit.name)):
                return self._logged_ids(commit, spec)
            if self.backend.exists(past_key(commit.name)):
                raise NotFound(
                    f"{self.backend.name(past_key(commit.name))}: the tokens up to "
                    f"{commit.position} were forgotten. Ask for later ones."
                ) from None
            raise

    def _logged_ids(self, commit: Commit, spec: Stored) -> np.ndarray:
        log = log_key(commit.name)
        if not is_packed(commit.name):
            return read_array(self.backend, log, spec)
        record, _ = read_document(self.backend, log, RECORD)
        found, _ = placed({TOKENS: spec}, len(record), RECORD)
        return read_array(self.backend, f"{log}/{TOKENS}", found[TOKENS])

    def needs(self, kept: Iterable[Commit]) -> list[list[str]]:
        """For each of the commits that are kept, the names of the others that hold its slots.

        Remembered until the next call: most of those that are kept are kept again.
        """
        self._needs = {
            commit: self._needs.get(commit)
            or [source.commit.name for source in self.read(commit).window]
            for commit in kept
        }
        return list(self._needs.values())

    def is_whole(self, commit: Commit) -> bool:
        """Whether its state can be loaded: neither it nor a commit that holds its slots is gone."""
        manifest = self.read(commit)
        if manifest.left != "all":
            return False
        keys = (document_key(source.commit.name) for source in manifest.window)
        return all(map(self.backend.exists, keys))

    def was_let_go(self, commit: Commit) -> bool:
        """Whether its state was let go: of it, or of a commit that holds its slots, a record is
        all that is there. What is missing without a record is damage.
        """
        manifest = self.read(commit)
        return manifest.left != "all" or any(
            self._is_record(source.commit) for source in manifest.window
        )

    def _is_record(self, commit: Commit) -> bool:
        exists = self.backend.exists
        return not exists(document_key(commit.name)) and (
            exists(record_key(commit.name)) or exists(past_key(commit.name))
        )

    def whole(self, commits: Iterable[Commit]) -> list[bool]:
        """`is_whole` of many."""
        there = self.names()
        anything_gone = bool(self.logged() or self.backend.files(PAST))
        return [
            commit.name in there and (not anything_gone or self.is_whole(commit))
            for commit in commits
        ]

    def size(self, commit: Commit) -> int:
        """Bytes of what is kept of a commit's own arrays."""
        manifest = self.read(commit)
        kept = {"all": manifest.arrays, "log": (TOKENS,), "record": ()}[manifest.left]
        return sum(manifest.arrays[name].nbytes for name in kept)

    def name(self, commit: Commit) -> str:
        """What messages call a commit."""
        return self.backend.name(commit_key(commit.name))

    def names(self) -> set[str]:
        """What lies in the folder of commits."""
        return {*self.backend.folders(COMMITS), *self.backend.files(COMMITS)}

    def logged(self) -> set[str]:
        """What lies in the folder of those whose token ids alone are kept."""
        return {*self.backend.folders(LOG), *self.backend.files(LOG)}

    def rows(
        self, commit: Commit, spec: Stored, name: str, *, start: int, stop: int
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """Rows of an array of a commit, unchecked; see `chunks.read_rows`."""
        return read_rows(self.backend, array_folder(commit, name), spec, start, stop)

    def check_sizes(self, commit: Commit, spec: Stored, name: str) -> None:
        """Check that there is as much of an array as its shape promises.

        Raises:
            Corrupt: there is not.
        """
        for extent in extents(array_folder(commit, name), spec):
            self.backend.check_size(extent)


def array_folder(commit: Commit, name: str) -> str:
    """Where an array of a commit lies, in a folder or in a file."""
    return f"{commit_key(commit.name)}/{name}"
