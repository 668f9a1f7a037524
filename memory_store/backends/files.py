"""Write-once files: bounded reads, complete writes, fsync on request.

Journaling filesystems merge concurrent fsyncs into one write to the disk, so a thread syncs a large
file while others are written.
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

from memory_store.backend import MAX_DOCUMENT, Buffer, Extent, check_extent, missing
from memory_store.errors import Corrupt, StoreError, from_os

THREAD_THRESHOLD = 2**20  # bytes of a file; below, starting a thread costs more than it saves
MAX_BUFFERS = 512  # per call; systems allow 1,024
# A planted pipe or link is refused; it is neither waited for nor followed.
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
# Folders of other users, or on virtual filesystems, may refuse to be opened or synced.
UNSYNCABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENOSYS)


def open_regular(path: str, extent: Extent) -> int:
    """A descriptor of the regular file at `path`, positioned at the start of an extent.

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
    """Check that a regular file contains an extent; raises the errors of `open_regular`."""
    try:
        status = os.lstat(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    _check_regular(path, status, extent)


def _unreadable(path: str, error: OSError) -> StoreError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return missing(path)
    if error.errno == errno.ELOOP:
        return _link(path)
    return from_os(error, "reading", path)


def _link(path: str) -> Corrupt:
    return Corrupt(f"{path}: a link. Put the file itself there.")


def _check_regular(path: str, status: os.stat_result, extent: Extent) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise _link(path)
    if not stat.S_ISREG(status.st_mode):
        raise Corrupt(f"{path}: not a regular file. Restore the file from a copy.")
    check_extent(path, status.st_size, extent)


def read_into(descriptor: int, buffers: Iterable[np.ndarray], path: str) -> None:
    """Fill the buffers, one-dimensional uint8, from the descriptor's position."""
    views = deque(buffer.data for buffer in buffers if len(buffer))
    while views:
        try:
            count = os.readv(descriptor, [*islice(views, MAX_BUFFERS)])
        except OSError as error:
            raise from_os(error, "reading", path) from error
        if not count:
            raise Corrupt(f"{path}: too short. Restore the file from a copy.")
        _advance(views, count)


def _advance(views: deque[memoryview], count: int) -> None:
    """Drop the first `count` bytes."""
    while views and count >= len(views[0]):
        count -= len(views.popleft())
    if count:
        views[0] = views[0][count:]


def read_document(path: str) -> bytes:
    """The bytes of a document.

    Raises:
        Corrupt: missing, not a regular file, or larger than `MAX_DOCUMENT`.
    """
    return _first(path, Extent(path, 0, None), MAX_DOCUMENT)[0]


def read_prefix(path: str, limit: int) -> tuple[bytes, int]:
    """The first bytes of a regular file, at most `limit`, and its size.

    Raises:
        Corrupt: missing, or not a regular file.
    """
    return _first(path, Extent(path, 0, 0), limit)


def _first(path: str, extent: Extent, limit: int) -> tuple[bytes, int]:
    descriptor = open_regular(path, extent)
    try:
        size = os.fstat(descriptor).st_size
        buffer = np.empty(min(size, limit), np.uint8)
        read_into(descriptor, [buffer], path)
        return buffer.tobytes(), size
    finally:
        os.close(descriptor)


def sync(descriptor: int) -> None:
    """Make the file durable: flush it to the disk, past all caches."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync stops at the disk's own cache
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def write_new(path: str | Path, buffers: Sequence[Buffer], *, durable: bool) -> None:
    """Write `buffers`, one after another, to a file that must not exist."""
    descriptor = _written(path, buffers)
    try:
        if durable:
            sync(descriptor)
    finally:
        os.close(descriptor)


def _written(path: str | Path, buffers: Sequence[Buffer]) -> int:
    """A descriptor of a new file that contains `buffers`, not yet synced."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        views = deque(memoryview(buffer) for buffer in buffers if len(buffer))
        while views:
            _advance(views, os.writev(descriptor, [*islice(views, MAX_BUFFERS)]))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def make_folder(path: Path) -> None:
    """Create the folder `path` if it does not exist.

    Raises:
        Corrupt: it is a link, which would redirect writes to another place.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        path.mkdir(exist_ok=True)
        return
    if stat.S_ISLNK(mode):
        raise Corrupt(f"{path}: a link. Put the folder itself there.")
    if not stat.S_ISDIR(mode):
        path.mkdir()  # raises FileExistsError


def sync_folder(path: str | Path) -> None:
    """Make the entries of a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def sync_parents(folder: Path) -> None:
    """Make the entries of a folder and of all its parents durable.

    A process that created the parents may have been killed before it synced them.
    """
    sync_folder(folder)
    for parent in Path(os.path.realpath(folder)).parents:
        try:
            sync_folder(parent)
        except OSError as error:
            if error.errno not in UNSYNCABLE:
                raise


class Batch:
    """Files that are written one after another and made durable together.

    A thread syncs large files while others are written. It ends with the `with` block, so that no
    thread is running when the process forks.
    """

    def __init__(self, *, durable: bool) -> None:
        self._durable = durable
        self._open: list[int] = []  # descriptors
        self._waiting: list[int] = []  # descriptors to be synced by `sync`
        self._begun: list[Future[None]] = []  # syncs of the others, in progress
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> "Batch":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._close()

    def write(self, path: str | Path, buffers: Sequence[Buffer]) -> None:
        """Write a new file; it is durable after `sync`."""
        self._open.append(_written(path, buffers))
        if sum(map(len, buffers)) < THREAD_THRESHOLD or not self._durable:
            self._waiting.append(self._open[-1])
        else:
            self._pool = self._pool or ThreadPoolExecutor(1)
            self._begun.append(self._pool.submit(sync, self._open[-1]))

    def sync(self, folders: Iterable[str | Path] = ()) -> None:
        """Make all files written so far durable, and the entries of `folders`."""
        if self._durable:
            for descriptor in self._waiting:
                sync(descriptor)
            for folder in folders:
                sync_folder(folder)
            for future in self._begun:
                future.result()
        self._close()

    def _close(self) -> None:
        self._waiting, self._begun = [], []
        while self._open:
            os.close(self._open.pop())
