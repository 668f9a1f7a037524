"""The interface between the store and a medium: files by key, drafts of commits, refs.

Keys are relative paths with "/" between their parts: `refs/main/000000000000.json`. Format and
history live above this interface, disks and networks below it. A backend raises `StoreError`; an
`OSError` may pass through where the caller converts it (see `errors.os_errors`).
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from memory_store.errors import Corrupt, Locked

MAX_DOCUMENT = 16 * 2**20  # bytes of a JSON file; a hostile file must not exhaust memory

Buffer = bytes | memoryview


@dataclass(frozen=True)
class Extent:
    """A byte range of a file, or the whole file.

    Attributes:
        key: the file.
        start: the first byte.
        size: number of bytes; None for a whole document of unknown size.
        whole: the file must end where the extent ends.
    """

    key: str
    start: int
    size: int | None
    whole: bool = False


class AlreadyExists(Exception):
    """A file of this name exists, and this attempt did not create it."""


class Content(Protocol):
    """An open extent, read from its first byte on."""

    def read_into(self, *buffers: np.ndarray) -> None:
        """Fill the buffers, one-dimensional uint8, one after another with the next bytes."""

    def skip(self, nbytes: int) -> None:
        """Skip `nbytes` bytes."""

    def close(self) -> None:
        """Release the file."""


class Draft(Protocol):
    """A commit that is being written; it is invisible until it is published."""

    def write(self, key: str, buffers: Sequence[Buffer]) -> None:
        """Write a new file; `key` is relative to the commit's key, "" for a commit in one file."""

    def persist(self) -> None:
        """Make all written files durable under the commit's name, without a ref."""

    def publish(self, branch: str, seq: int, data: bytes) -> None:
        """Make all written files durable, then create the ref.

        Raises:
            AlreadyExists: the branch has a ref of that number.
        """


class Backend(Protocol):
    """A medium that holds the files of one session.

    Attributes:
        remote: whether the medium is a network service: reads are slow, nothing can be locked.
    """

    @property
    def remote(self) -> bool: ...

    def name(self, key: str = "") -> str:
        """The path or URL of a key, or of the session, for messages."""

    def read(self, key: str) -> bytes:
        """The bytes of a document; Corrupt if missing, not a file or above `MAX_DOCUMENT`."""

    def read_prefix(self, key: str, limit: int) -> tuple[bytes, int]:
        """The first bytes of a file, at most `limit`, and its size; Corrupt if missing."""

    def open(self, extent: Extent) -> Content:
        """Open an extent for reading; Corrupt if the file is missing, not a file or too short."""

    def check_size(self, extent: Extent) -> None:
        """Raise the errors of `open` without opening the file."""

    def prefetch(self, wanted: Callable[[], Iterable[Extent]]) -> "AbstractContextManager[Backend]":
        """This backend while the extents `wanted()` are read.

        A backend with slow reads fetches them concurrently, before they are requested.
        """

    def stamp(self, key: str) -> object:
        """A cheap value that changes whenever the file changes; None if there is none."""

    def exists(self, key: str) -> bool:
        """Whether anything exists under a key."""

    def files(self, folder: str) -> list[str]:
        """The names in a folder, in any order; empty if the folder does not exist."""

    def folders(self, folder: str) -> list[str]:
        """The names of the subfolders of a folder; empty if the folder is created on demand."""

    def is_vacant(self) -> bool:
        """Whether a session can begin here: there is nothing, or only what a creation left."""

    def begin(self, data: bytes) -> None:
        """Create the session: write `data` as `session.json`, never over an existing one.

        Raises:
            StoreError: the place is not vacant.
        """

    def draft(self, key: str) -> AbstractContextManager[Draft]:
        """A new commit; an exception in the `with` block removes it unless its ref was created."""

    def publish(self, branch: str, seq: int, data: bytes) -> None:
        """Create a ref, durable on return. Raises `AlreadyExists` like `Draft.publish`."""

    def create(self, key: str, data: bytes) -> None:
        """Create a small file, durable on return. Raises `AlreadyExists`."""

    def discard(self, key: str) -> None:
        """Remove a file, or a folder with its contents; does nothing if it does not exist."""

    def age(self, key: str) -> float:
        """Seconds since the last write to a file or folder; 0 if it does not exist."""

    def unfinished(self) -> list[str]:
        """Temporary files of interrupted writes, except drafts of commits."""

    def commits_lock(self, *, exclusive: bool) -> AbstractContextManager[object]:
        """A lock on the set of commits: shared to write or reference one, `exclusive` to delete.

        A medium without locks returns one that excludes nobody.
        """

    def writer(self, branch: str) -> AbstractContextManager[object]:
        """An exclusive lock on a branch, if the medium has locks. Raises `Locked`."""

    def size(self) -> int:
        """Total bytes of all files."""

    def delete(self) -> None:
        """Delete the session."""


def missing(name: str) -> Corrupt:
    """The error for a missing file."""
    return Corrupt(f"{name}: missing. Restore the file from a copy.")


def check_extent(name: str, size: int, extent: Extent) -> None:
    """Check that a file of `size` bytes can contain an extent.

    Raises:
        Corrupt: the file is too short or too long; states both sizes.
    """
    if extent.size is None:
        if size <= MAX_DOCUMENT:
            return
        raise Corrupt(
            f"{name}: has {size} bytes; documents have at most {MAX_DOCUMENT}. "
            "Restore the file from a copy."
        )
    end = extent.start + extent.size
    if size < end or (extent.whole and size > end):
        raise Corrupt(
            f"{name}: has {size} bytes where {end} were written. Restore the file from a copy."
        )


def locked(place: object, branch: str, holder: str, *, own: bool) -> Locked:
    """The error for a branch that another writer holds.

    Args:
        holder: the id of its process, for the message.
        own: whether that is this process.
    """
    if own:
        return Locked(
            f"{place}: {branch!r} is open for writing already, in this process ({holder}). Use "
            "that session, close it, or fork the session to a branch of your own."
        )
    return Locked(
        f"{place}: {branch!r} is being written by process {holder}. End it, wait, or "
        "fork the session to a branch of your own."
    )
