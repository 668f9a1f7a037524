"""What a store asks of the medium that keeps a session: files by key, drafts of commits, refs.

Keys are relative, with "/" between their parts: `refs/main/000000000000.json`. All that is known
about the format and the history lies above this interface; all that is known about disks and
networks, below it. A backend raises `StoreError`s; an `OSError` may come through where the caller
says what was being done.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from memory_store.errors import Corrupt, Locked

MAX_DOCUMENT = 16 * 2**20  # bytes of a JSON file; a hostile one must not fill memory

Buffer = bytes | memoryview


@dataclass(frozen=True)
class Extent:
    """A part of a file, or all of it.

    Attributes:
        key: the file.
        start: its first byte.
        size: bytes; None for all of a small file, however many.
        whole: the file ends where the extent does.
    """

    key: str
    start: int
    size: int | None
    whole: bool = False


class Taken(Exception):
    """The number of a ref is taken, and not by this very attempt."""


class Content(Protocol):
    """A part of a file that is being read, from its beginning on."""

    def read_into(self, *buffers: np.ndarray) -> None:
        """Fill the buffers, one-dimensional uint8, one after the other with what comes next."""

    def skip(self, nbytes: int) -> None:
        """Pass over bytes."""

    def close(self) -> None:
        """Let go of it."""


class Draft(Protocol):
    """A commit while it is written; nobody sees it before it is published."""

    def write(self, key: str, buffers: Sequence[Buffer]) -> None:
        """Write a new file; `key` is relative to the commit's, "" is a commit in one file."""

    def keep(self) -> None:
        """Make all that was written last, under the commit's name, without a ref."""

    def publish(self, branch: str, seq: int, data: bytes) -> None:
        """Make all that was written last, then create the ref.

        Raises:
            Taken: the branch has a ref of that number.
        """


class Backend(Protocol):
    """A place that keeps the files of one session.

    Attributes:
        remote: whether it lies where reading is slow and nothing can be locked.
    """

    @property
    def remote(self) -> bool: ...

    def name(self, key: str = "") -> str:
        """What messages call a key, or the whole place."""

    def read(self, key: str) -> bytes:
        """A small file; Corrupt if it is missing, no file or larger than `MAX_DOCUMENT`."""

    def beginning(self, key: str, most: int) -> tuple[bytes, int]:
        """The first bytes of a file, at most so many, and its size; Corrupt if it is missing."""

    def open(self, extent: Extent) -> Content:
        """A part of a file to be read; Corrupt if the file is missing, no file or too short."""

    def check_size(self, extent: Extent) -> None:
        """Raise what `open` raises."""

    def ahead(self, wanted: Callable[[], Iterable[Extent]]) -> "AbstractContextManager[Backend]":
        """This place while the extents `wanted()` are read.

        A backend that gains by it fetches them side by side, before they are asked for.
        """

    def stamp(self, key: str) -> object:
        """What changes when a file does, as far as that costs next to nothing; None if unknown."""

    def exists(self, key: str) -> bool:
        """Whether there is something under a key."""

    def files(self, folder: str) -> list[str]:
        """Names in a folder, in any order; none if there is no such folder."""

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in a folder; none if it is one that is made when it is needed."""

    def begin(self, data: bytes) -> None:
        """Make this the place of a session: create `session.json`.

        Raises:
            StoreError: something is there already.
        """

    def draft(self, key: str) -> AbstractContextManager[Draft]:
        """A new commit. Unless its ref is created in the `with` block, nothing is left of it."""

    def publish(self, branch: str, seq: int, data: bytes) -> None:
        """Create a ref; it lasts once this returns. Raises `Taken` like `Draft.publish`."""

    def create(self, key: str, data: bytes) -> None:
        """Create a small file; it lasts once this returns. Raises `Taken` if there is one."""

    def discard(self, key: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing happens if it is not there."""

    def age(self, key: str) -> float:
        """Seconds since something in a file or folder was last written; 0 if it is not there."""

    def unfinished(self) -> list[str]:
        """Files that writes have begun and not ended, but for drafts of commits."""

    def naming(self, *, alone: bool) -> AbstractContextManager[object]:
        """Held by who names an old commit, and `alone` by who removes those that nobody names.

        Where the medium can, neither goes on while the other holds it.
        """

    def writer(self, branch: str) -> AbstractContextManager[object]:
        """Keep other writers out of a branch, where the medium can; raises `Locked`."""

    def size(self) -> int:
        """Bytes of all files."""

    def delete(self) -> None:
        """Remove everything."""


def missing(name: str) -> Corrupt:
    """The error for a file that is not there."""
    return Corrupt(f"{name}: missing. Restore the file from a copy.")


def check_found(name: str, found: int, extent: Extent) -> None:
    """Refuse a file of `found` bytes that cannot have an extent.

    Raises:
        Corrupt: says what was found.
    """
    if extent.size is None:
        if found <= MAX_DOCUMENT:
            return
        raise Corrupt(
            f"{name}: has {found} bytes; documents have at most {MAX_DOCUMENT}. "
            "Restore the file from a copy."
        )
    end = extent.start + extent.size
    if found < end or (extent.whole and found > end):
        raise Corrupt(
            f"{name}: has {found} bytes where {end} were written. Restore the file from a copy."
        )


def locked(place: object, branch: str, holder: str) -> Locked:
    """The error for a branch that another writer holds."""
    return Locked(
        f"{place}: {branch!r} is being written by process {holder}. End it, wait, or "
        "fork the session to a branch of your own."
    )
