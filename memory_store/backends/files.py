"""Files that are written once: bounded reads, complete writes, fsync where it is asked for.

Journalling filesystems gather fsyncs that wait at the same time into one write to the disk, so a
large file is synced from a thread of its own.
"""

import errno
import fcntl
import os
import stat
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from memory_store.backend import MAX_DOCUMENT, Buffer, Extent, check_found, missing
from memory_store.errors import Corrupt, StoreError, from_os

WORTH_A_THREAD = 2**20  # bytes; with fewer, beginning a thread costs more than it saves
MOST_BUFFERS = 512  # of one call; systems allow 1,024
# A pipe or a link that somebody planted is refused rather than waited for or followed.
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
# Folders that others made and keep, or that are on no disk, may refuse to be read or synced.
NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENOSYS)


def open_regular(path: str, extent: Extent) -> int:
    """A descriptor to read an extent of the regular file at `path`, standing at its first byte.

    Raises:
        Corrupt: missing, not a regular file, or too short.
        StoreError: not permitted.
    """
    try:
        descriptor = os.open(path, READ)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        _check_regular(path, os.fstat(descriptor), extent)
        if extent.start:
            os.lseek(descriptor, extent.start, os.SEEK_SET)
    except Corrupt:
        os.close(descriptor)
        raise
    return descriptor


def check_size(path: str, extent: Extent) -> None:
    """Check that the regular file at `path` has an extent; raises what `open_regular` raises."""
    try:
        found = os.lstat(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    _check_regular(path, found, extent)


def _unreadable(path: str, error: OSError) -> StoreError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return missing(path)
    if error.errno == errno.ELOOP:
        return _link(path)
    return from_os(error, "reading", path)


def _link(path: str) -> Corrupt:
    return Corrupt(f"{path}: a link. Put the file itself there.")


def _check_regular(path: str, found: os.stat_result, extent: Extent) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise _link(path)
    if not stat.S_ISREG(found.st_mode):
        raise Corrupt(f"{path}: not a regular file. Restore the file from a copy.")
    check_found(path, found.st_size, extent)


def read_into(descriptor: int, buffers: Iterable[np.ndarray], path: str) -> None:
    """Fill the buffers, one-dimensional uint8, from where the descriptor stands."""
    views = deque(buffer.data for buffer in buffers if len(buffer))
    while views:
        try:
            count = os.readv(descriptor, [*islice(views, MOST_BUFFERS)])
        except OSError as error:
            raise from_os(error, "reading", path) from error
        if not count:
            raise Corrupt(f"{path}: ends too early. Restore the file from a copy.")
        _pass(views, count)


def _pass(views: deque[memoryview], count: int) -> None:
    """Take the first `count` bytes away."""
    while views and count >= len(views[0]):
        count -= len(views.popleft())
    if count:
        views[0] = views[0][count:]


def read_document(path: str) -> bytes:
    """The bytes of a small file.

    Raises:
        Corrupt: missing, not a regular file, or larger than any document.
    """
    return _first(path, Extent(path, 0, None), MAX_DOCUMENT)[0]


def read_beginning(path: str, most: int) -> tuple[bytes, int]:
    """The first bytes of a regular file, at most so many, and its size.

    Raises:
        Corrupt: missing, or not a regular file.
    """
    return _first(path, Extent(path, 0, 0), most)


def _first(path: str, extent: Extent, most: int) -> tuple[bytes, int]:
    descriptor = open_regular(path, extent)
    try:
        size = os.fstat(descriptor).st_size
        buffer = np.empty(min(size, most), np.uint8)
        read_into(descriptor, [buffer], path)
        return buffer.tobytes(), size
    finally:
        os.close(descriptor)


def sync(descriptor: int) -> None:
    """Have the disk hold what was written, not only its cache."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync stops at the disk's own cache
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def write_new(path: str | Path, buffers: Sequence[Buffer], *, durable: bool) -> None:
    """Write `buffers`, one after the other, to a file that must not exist."""
    descriptor = _written(path, buffers)
    try:
        if durable:
            sync(descriptor)
    finally:
        os.close(descriptor)


def _written(path: str | Path, buffers: Sequence[Buffer]) -> int:
    """A descriptor of a new file that holds `buffers`, for the system at least."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        views = deque(memoryview(buffer) for buffer in buffers if len(buffer))
        while views:
            _pass(views, os.writev(descriptor, [*islice(views, MOST_BUFFERS)]))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def make_folder(path: Path) -> None:
    """Make the folder `path` unless it is there.

    Raises:
        Corrupt: it is a link, and what is written to it would end up elsewhere.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        path.mkdir(exist_ok=True)
        return
    if stat.S_ISLNK(mode):
        raise Corrupt(f"{path}: a link. Put the folder itself there.")
    if not stat.S_ISDIR(mode):
        path.mkdir()  # says what is there


def sync_folder(path: str | Path) -> None:
    """Have the disk hold the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def sync_way(folder: Path) -> None:
    """Have the disk hold the names in a folder, and those of all the folders that lead to it.

    Who made them is not known: it may have been killed before it could wait for the disk.
    """
    sync_folder(folder)
    for parent in Path(os.path.realpath(folder)).parents:
        try:
            sync_folder(parent)
        except OSError as error:
            if error.errno not in NOT_OURS:
                raise


class Batch:
    """Files that are written one after the other, and are on the disk at the end.

    A large one is synced while others are written, by a thread that lives as long as the `with`
    block: none is left over when a process forks.
    """

    def __init__(self, *, durable: bool) -> None:
        self._durable = durable
        self._open: list[int] = []  # descriptors
        self._waiting: list[int] = []  # those that `sync` is to sync
        self._begun: list[Future[None]] = []  # the others
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> "Batch":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._close()

    def write(self, path: str | Path, buffers: Sequence[Buffer]) -> None:
        """Write a new file; the disk may not hold it before `sync`."""
        self._open.append(_written(path, buffers))
        if sum(map(len, buffers)) < WORTH_A_THREAD or not self._durable:
            self._waiting.append(self._open[-1])
        else:
            self._pool = self._pool or ThreadPoolExecutor(1)
            self._begun.append(self._pool.submit(sync, self._open[-1]))

    def sync(self, folders: Iterable[str | Path] = ()) -> None:
        """Return when the disk holds all files written so far, and the names in `folders`."""
        if self._durable:
            for descriptor in self._waiting:
                sync(descriptor)
            for folder in folders:
                sync_folder(folder)
            for end in self._begun:
                end.result()
        self._close()

    def _close(self) -> None:
        self._waiting, self._begun = [], []
        while self._open:
            os.close(self._open.pop())
