"""A lock that tells a second writer early; the create-only ref is what guards the commits."""

import errno
import fcntl
import os
import socket
from pathlib import Path

from memory_store.errors import Locked, os_errors
from memory_store.files import make_folder

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class WriterLock:
    """Holds a branch's folder from entry to exit; the system lets go when the process ends.

    Raises:
        Locked: on entry, if another holds it.
        StoreError: on entry, if the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def __enter__(self) -> "WriterLock":
        path = self._folder / ".lock"  # never removed: two processes must lock the same file
        with os_errors("locking the branch", path):
            make_folder(self._folder)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(path, flags, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "of unknown id"
                os.close(descriptor)
                raise Locked(
                    f"{path}: {self._folder.name!r} is being written by process {holder}. "
                    "End it, wait, or fork the session to a branch of your own."
                ) from error
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    os.close(descriptor)
                    raise
        self._descriptor = descriptor
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
