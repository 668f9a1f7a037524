"""Locks in a folder: one per branch for writers, and one for the set of commits.

Both are advisory; create-only refs prevent lost updates.
"""

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

from memory_store.backend import locked
from memory_store.backends.files import make_folder
from memory_store.errors import os_errors

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class _FileLock:
    """A lock held by an open file; the system releases it when the process ends."""

    _descriptor: int | None = None

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class WriterLock(_FileLock):
    """An exclusive lock on a branch, from entry to exit.

    Raises:
        Locked: on entry, if another writer holds it.
        StoreError: on entry, if the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> "WriterLock":
        path = self._folder / ".lock"  # never removed: all processes must lock the same file
        with os_errors("locking the branch", path):
            make_folder(self._folder)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(path, flags, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _this_process().encode(), 0)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "of unknown id"
                os.close(descriptor)
                own = holder == _this_process()
                raise locked(path, self._folder.name, holder, own=own) from error
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    os.close(descriptor)
                    raise
        self._descriptor = descriptor
        return self


def _this_process() -> str:
    return f"{os.getpid()} on {socket.gethostname()}"


class CommitsLock(_FileLock):
    """A lock on the set of commits: shared to write or reference one, exclusive to delete some.

    Entering waits for conflicting holders, but not on filesystems without locks.

    Raises:
        StoreError: on entry, if the folder does not exist.
    """

    def __init__(self, folder: Path, *, exclusive: bool) -> None:
        self._folder = folder
        self._mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            # A process that was forked meanwhile shares the lock: closing would leave it locked.
            with suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        super().__exit__()

    def __enter__(self) -> "CommitsLock":
        with os_errors("locking the session", self._folder):
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, self._mode)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    os.close(descriptor)
                    raise
        self._descriptor = descriptor
        return self
