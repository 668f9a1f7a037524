"""A session in a dict, for tests and for sessions that end with the process."""

import os
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from memory_store.backend import (
    AlreadyExists,
    Backend,
    Buffer,
    Extent,
    check_extent,
    locked,
    missing,
)
from memory_store.errors import StoreError
from memory_store.format.names import SESSION_FILE, branch_folder, ref_key

Files = MutableMapping[str, bytes]


class MemoryBackend:
    """The files of a session in a dict; see `backend.Backend`.

    Every atomic step is a single method call on the dict, which is atomic among threads.
    """

    remote = False

    def __init__(self, files: Files) -> None:
        self._files = files

    def name(self, key: str = "") -> str:
        return f"in memory: {key}" if key else "in memory"

    def read(self, key: str) -> bytes:
        return self._get(Extent(key, 0, None))

    def read_prefix(self, key: str, limit: int) -> tuple[bytes, int]:
        data = self._get(Extent(key, 0, 0))
        return data[:limit], len(data)

    def open(self, extent: Extent) -> "BytesContent":
        return BytesContent(memoryview(self._get(extent))[extent.start :])

    def check_size(self, extent: Extent) -> None:
        self._get(extent)

    def _get(self, extent: Extent) -> bytes:
        data = self._files.get(extent.key)
        if data is None:
            raise missing(self.name(extent.key))
        check_extent(self.name(extent.key), len(data), extent)
        return data

    def prefetch(
        self, wanted: Callable[[], Iterable[Extent]]
    ) -> AbstractContextManager["MemoryBackend"]:
        return nullcontext(self)

    def stamp(self, key: str) -> object:
        return None  # comparing contents is cheap in memory

    def exists(self, key: str) -> bool:
        return key in self._files

    def files(self, folder: str) -> list[str]:
        return [name for name in self._below(folder) if "/" not in name]

    def folders(self, folder: str) -> list[str]:
        return list({name.split("/")[0] for name in self._below(folder) if "/" in name})

    def _below(self, folder: str) -> list[str]:
        start = f"{folder}/" if folder else ""
        return [key.removeprefix(start) for key in list(self._files) if key.startswith(start)]

    def is_vacant(self) -> bool:
        return not self._files

    def begin(self, data: bytes) -> None:
        if self._files or self._files.setdefault(SESSION_FILE, data) is not data:
            raise StoreError(f"{self.name()}: in use already. Open it, or give another dict.")

    @contextmanager
    def draft(self, key: str) -> Iterator["_Draft"]:
        draft = _Draft(self, self._files, key)
        try:
            yield draft
        except BaseException:
            draft.undo()
            raise

    def publish(self, branch: str, seq: int, data: bytes) -> None:
        if self._files.setdefault(ref_key(branch, seq), data) is not data:
            raise AlreadyExists

    def create(self, key: str, data: bytes) -> None:
        if self._files.setdefault(key, data) is not data:
            raise AlreadyExists

    def discard(self, key: str) -> None:
        for name in [key, *(f"{key}/{name}" for name in self._below(key))]:
            self._files.pop(name, None)

    def age(self, key: str) -> float:
        return 0.0  # a dict has no time stamps

    def unfinished(self) -> list[str]:
        return []

    def commits_lock(self, *, exclusive: bool) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def writer(self, branch: str) -> Iterator[None]:
        key, holder = f"{branch_folder(branch)}/.lock", str(os.getpid()).encode()
        held = self._files.setdefault(key, holder)
        if held is not holder:
            raise locked(self.name(key), branch, held.decode(), own=True)
        try:
            yield
        finally:
            self._files.pop(key, None)

    def size(self) -> int:
        return sum(map(len, list(self._files.values())))

    def delete(self) -> None:
        self._files.clear()


class BytesContent:
    """A file in memory; see `backend.Content`."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = np.frombuffer(data, np.uint8)
        self._at = 0

    def read_into(self, *buffers: np.ndarray) -> None:
        for buffer in buffers:
            buffer[...] = self._data[self._at : self._at + len(buffer)]
            self._at += len(buffer)

    def skip(self, nbytes: int) -> None:
        self._at += nbytes

    def close(self) -> None:
        pass


class _Draft:
    """A commit that is being written; its files enter the dict together, before its ref."""

    def __init__(self, backend: MemoryBackend, files: Files, key: str) -> None:
        self._backend, self._files, self._key = backend, files, key
        self._written: dict[str, bytes] = {}
        self._published = False

    def write(self, key: str, buffers: Sequence[Buffer]) -> None:
        self._written[f"{self._key}/{key}" if key else self._key] = b"".join(buffers)

    def persist(self) -> None:
        self._files.update(self._written)

    def publish(self, branch: str, seq: int, data: bytes) -> None:
        self.persist()
        self._backend.publish(branch, seq, data)
        self._published = True

    def undo(self) -> None:
        """Remove the commit, unless its ref was created."""
        if not self._published:
            for key in self._written:
                self._files.pop(key, None)


if TYPE_CHECKING:

    def _conforms(backend: MemoryBackend) -> Backend:
        return backend
