"""The commits of a session, as they are read."""

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from memory_store.arrays import check_sizes, memory, read_array, read_rows
from memory_store.manifest import Manifest
from memory_store.manifest_reader import read_manifest
from memory_store.names import commit_folder
from memory_store.protocol import Commit
from memory_store.zarrformat import Stored


class Scratch:
    """Memory that is used again and again: fresh pages cost more than the bytes put into them."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def take(self, nbytes: int) -> np.ndarray:
        """At least `nbytes` bytes; what an earlier call returned is void."""
        if len(self._buffer) < nbytes:
            self._buffer = np.empty(nbytes, np.uint8)
        return self._buffer


class Commits:
    """Reads commits; each is checked against its address."""

    def __init__(self, root: Path, session: str) -> None:
        self.root = root
        self.session = session
        # Commits never change; a writer and long walks meet the same ones again and again.
        self.manifest = lru_cache(maxsize=64)(self.read)

    def folder(self, commit: Commit) -> Path:
        """Where a commit lies."""
        return commit_folder(self.root, commit.name)

    def read(self, commit: Commit) -> Manifest:
        """The attributes of a commit, from the disk; `manifest` may know them already.

        Raises:
            Corrupt: missing, damaged, or another commit.
        """
        return read_manifest(self.folder(commit), commit, self.session)

    def array(
        self,
        commit: Commit,
        spec: Stored,
        name: str,
        *,
        allocate: Callable[[int], np.ndarray] = memory,
    ) -> np.ndarray:
        """An array of a commit, checked against what is known of it."""
        return read_array(self._array_folder(commit, name), spec, allocate)

    def rows(
        self, commit: Commit, spec: Stored, name: str, *, start: int, stop: int
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """Rows of an array of a commit, unchecked; see `arrays.read_rows`."""
        return read_rows(self._array_folder(commit, name), spec, start, stop)

    def check_sizes(self, commit: Commit, spec: Stored, name: str) -> None:
        """Check that the files of an array have the size that its shape promises."""
        check_sizes(self._array_folder(commit, name), spec)

    def _array_folder(self, commit: Commit, name: str) -> str:
        # Path costs as much as reading a small file. The commit's name has been checked.
        return os.path.join(self.root, "commits", commit.name, name)
