"""A commit in a session's folder, from its first byte to its ref.

Two writers that want the same ref cannot both have it, because a hard link to an existing name is
refused by the filesystem. Where there are no hard links, a lock and a rename stand in.
"""

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from memory_store.backend import Buffer, Taken
from memory_store.backends.files import Batch, make_folder, sync_folder
from memory_store.errors import StoreError
from memory_store.format.names import ref_key

NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


class FolderDraft:
    """A commit while it is written: complete or not, nobody reads it before a ref names it.

    So nothing need be on disk before all of it is waited for, once.
    """

    def __init__(self, root: Path, key: str, *, durable: bool) -> None:
        self.batch = Batch(durable=durable)
        self.path = os.path.join(root, key)
        self._root = root
        self._durable = durable
        self._folders: list[str] = []
        self._ref: Pending | None = None

    def write(self, key: str, buffers: Sequence[Buffer]) -> None:
        path = f"{self.path}/{key}" if key else self.path
        if key:
            for folder in dict.fromkeys((self.path, os.path.dirname(path))):
                if folder not in self._folders:
                    os.mkdir(folder)
                    self._folders.append(folder)
        self.batch.write(path, buffers)

    def keep(self) -> None:
        with self.batch:  # its threads end here
            self.batch.sync([*self._folders[::-1], os.path.dirname(self.path)])

    def publish(self, branch: str, seq: int, data: bytes) -> None:
        self._ref = ref = Pending.prepare(self._root, branch, seq, data)
        self.batch.write(ref.temporary, [data])
        self.keep()
        ref.publish(durable=self._durable)

    def undo(self) -> None:
        """Leave all as it was, unless the ref got through: then the commit stays."""
        if self._ref is None or not self._ref.is_published():
            if os.path.isdir(self.path):
                shutil.rmtree(self.path, ignore_errors=True)
            else:
                with suppress(OSError):
                    os.unlink(self.path)
        if self._ref is not None:
            self._ref.temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Pending:
    """A ref that is on disk under a temporary name, or will be, and not published yet."""

    branch: str
    seq: int
    data: bytes
    temporary: Path
    target: Path

    @classmethod
    def prepare(cls, root: Path, branch: str, seq: int, data: bytes) -> Self:
        """To be written to its temporary name, then published; makes the branch's folder.

        Raises:
            Corrupt: the branch's folder is a link.
        """
        target = root / ref_key(branch, seq)
        make_folder(target.parent)
        return cls(branch, seq, data, temporary(target.parent), target)

    def publish(self, *, durable: bool) -> None:
        """Give the ref its name. All that it leads to must be on disk before."""
        folder = self.target.parent
        if durable and self.seq == 0:
            # Who finds a ref goes on from it: by then the way to it is on disk, whoever made it.
            sync_folder(folder.parent.parent)
            sync_folder(folder.parent)
        try:
            create_only(self.temporary, self.target)
        except FileExistsError as error:
            raise Taken from error
        try:
            if durable:
                sync_folder(folder)
        except OSError as error:
            raise StoreError(
                f"{self.target}: published, but the disk did not confirm it ({error.strerror}). "
                f"Check the disk, then see head({self.branch!r})."
            ) from error

    def is_published(self) -> bool:
        """Whether the branch was moved, however the attempt ended; True where that is unknown."""
        try:
            return self.target.read_bytes() == self.data
        except FileNotFoundError:
            return False
        except OSError as error:
            return error.errno != errno.ENAMETOOLONG  # what has no name cannot be there


def temporary(folder: Path) -> Path:
    """A name in `folder` for a file that is not complete; readers pass over it."""
    return folder / f".tmp-{uuid.uuid4().hex}"


def create_only(source: Path, target: Path) -> None:
    """Give `source` the name `target` and take its own away; FileExistsError if it is taken."""
    try:
        os.link(source, target)
    except FileExistsError:
        # A network filesystem may repeat a request whose answer was lost.
        if not os.path.samefile(source, target):
            raise
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        _locked_rename(source, target)
        return
    source.unlink(missing_ok=True)


def _locked_rename(source: Path, target: Path) -> None:
    """The same without hard links."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    lock = os.open(target.parent / ".publish", flags, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.rename(source, target)
    finally:
        os.close(lock)
