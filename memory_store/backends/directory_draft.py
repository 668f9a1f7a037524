"""A commit in a session's folder, from its first byte to its ref.

Two writers cannot both create a ref, because the filesystem refuses a hard link to an existing
name. On filesystems without hard links, a lock and a rename take their place.
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

from memory_store.backend import AlreadyExists, Buffer
from memory_store.backends.files import Batch, make_folder, sync_folder
from memory_store.errors import StoreError
from memory_store.format.names import ref_key

PUBLISH_LOCK = ".publish"  # of folders on filesystems without hard links
NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


class DirectoryDraft:
    """A commit that is being written; nobody reads it before a ref names it.

    Therefore all its files are synced together, once, before the ref is created.
    """

    def __init__(self, root: Path, key: str, *, durable: bool) -> None:
        self.batch = Batch(durable=durable)
        self.path = os.path.join(root, key)
        self._root = root
        self._durable = durable
        self._folders: list[str] = []
        self._ref: PendingRef | None = None

    def write(self, key: str, buffers: Sequence[Buffer]) -> None:
        path = f"{self.path}/{key}" if key else self.path
        if key:
            for folder in dict.fromkeys((self.path, os.path.dirname(path))):
                if folder not in self._folders:
                    os.mkdir(folder)
                    self._folders.append(folder)
        self.batch.write(path, buffers)

    def persist(self) -> None:
        with self.batch:  # joins its thread
            self.batch.sync([*self._folders[::-1], os.path.dirname(self.path)])

    def publish(self, branch: str, seq: int, data: bytes) -> None:
        self._ref = ref = PendingRef.prepare(self._root, branch, seq, data)
        self.batch.write(ref.temporary, [data])
        self.persist()
        ref.publish(durable=self._durable)

    def undo(self) -> None:
        """Remove the commit, unless its ref was created."""
        if self._ref is None or not self._ref.is_published():
            if os.path.isdir(self.path):
                shutil.rmtree(self.path, ignore_errors=True)
            else:
                with suppress(OSError):
                    os.unlink(self.path)
        if self._ref is not None:
            self._ref.temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class PendingRef:
    """A ref under a temporary name, not yet published."""

    branch: str
    seq: int
    data: bytes
    temporary: Path
    target: Path

    @classmethod
    def prepare(cls, root: Path, branch: str, seq: int, data: bytes) -> Self:
        """Choose a temporary name in the branch's folder, which is created if it is missing.

        Raises:
            Corrupt: the branch's folder is a link.
        """
        target = root / ref_key(branch, seq)
        make_folder(target.parent)
        return cls(branch, seq, data, temporary(target.parent), target)

    def publish(self, *, durable: bool) -> None:
        """Give the ref its name. Everything that it refers to must be durable before.

        Raises:
            AlreadyExists: another writer published a ref of that number.
            StoreError: the ref was published, but the disk did not confirm it.
        """
        folder = self.target.parent
        if durable and self.seq == 0:
            # Another writer may continue from this ref at once, so its folders are durable first.
            sync_folder(folder.parent.parent)
            sync_folder(folder.parent)
        try:
            create_only(self.temporary, self.target)
        except FileExistsError as error:
            raise AlreadyExists from error
        try:
            if durable:
                sync_folder(folder)
        except OSError as error:
            raise StoreError(
                f"{self.target}: published, but the disk did not confirm it ({error.strerror}). "
                f"Check the disk, then head({self.branch!r})."
            ) from error

    def is_published(self) -> bool:
        """Whether the ref was created, even by an attempt that failed; True if unknown."""
        try:
            return self.target.read_bytes() == self.data
        except FileNotFoundError:
            return False
        except OSError as error:
            return error.errno != errno.ENAMETOOLONG  # such a file cannot exist


def temporary(folder: Path) -> Path:
    """A name in `folder` for an incomplete file; readers ignore it."""
    return folder / f".tmp-{uuid.uuid4().hex}"


def create_only(source: Path, target: Path) -> None:
    """Rename `source` to `target`; FileExistsError if `target` exists."""
    try:
        os.link(source, target)
    except FileExistsError:
        # A network filesystem may repeat a request whose response was lost.
        if not os.path.samefile(source, target):
            raise
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        _locked_rename(source, target)
        return
    source.unlink(missing_ok=True)


def _locked_rename(source: Path, target: Path) -> None:
    """`create_only` without hard links."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    lock = os.open(target.parent / PUBLISH_LOCK, flags, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.rename(source, target)
    finally:
        os.close(lock)
