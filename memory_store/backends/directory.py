"""A session in a folder of a local filesystem."""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from memory_store.backend import AlreadyExists, Backend, Extent
from memory_store.backends.directory_draft import (
    PUBLISH_LOCK,
    DirectoryDraft,
    PendingRef,
    create_only,
    temporary,
)
from memory_store.backends.files import (
    check_size,
    make_folder,
    open_regular,
    read_document,
    read_into,
    read_prefix,
    sync_folder,
    sync_parents,
    write_new,
)
from memory_store.backends.lock import CommitsLock, WriterLock
from memory_store.errors import Corrupt, StoreError, from_os, os_errors
from memory_store.format.names import COMMITS, REFS, SESSION_FILE, branch_folder

Durability = Literal["full", "normal"]


class DirectoryBackend:
    """The files of a session in a folder; see `backend.Backend`."""

    remote = False

    def __init__(self, path: str | os.PathLike[str], durability: Durability) -> None:
        if durability not in ("full", "normal"):
            raise ValueError(f"durability = {durability!r}; allowed: 'full' or 'normal'")
        self.root = Path(path).absolute()
        self.durable = durability == "full"
        self._prefix = os.path.join(self.root, "")  # a Path takes as long as reading a small file

    def name(self, key: str = "") -> str:
        return self._prefix + key if key else str(self.root)

    def read(self, key: str) -> bytes:
        return read_document(self._prefix + key)

    def read_prefix(self, key: str, limit: int) -> tuple[bytes, int]:
        return read_prefix(self._prefix + key, limit)

    def open(self, extent: Extent) -> "_File":
        path = self._prefix + extent.key
        return _File(path, open_regular(path, extent))

    def check_size(self, extent: Extent) -> None:
        check_size(self._prefix + extent.key, extent)

    def prefetch(
        self, wanted: Callable[[], Iterable[Extent]]
    ) -> AbstractContextManager["DirectoryBackend"]:
        return nullcontext(self)

    def stamp(self, key: str) -> object:
        try:
            status = os.lstat(self._prefix + key)
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def exists(self, key: str) -> bool:
        path = self._prefix + key
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:  # it may exist in a folder that we may not read
            raise from_os(error, "reading", path) from error
        return True

    def files(self, folder: str) -> list[str]:
        path = self._prefix + folder
        try:
            return os.listdir(path)
        except FileNotFoundError:
            # Tell a branch that does not exist from a disk that is unmounted.
            parent = os.path.dirname(path)
            if not os.path.lexists(parent):
                raise Corrupt(f"{parent}: missing. Restore it from a copy.") from None
            return []
        except OSError as error:
            raise from_os(error, "listing", self.name(folder)) from error

    def folders(self, folder: str) -> list[str]:
        path = self._prefix + folder
        if folder not in (REFS, COMMITS) and not os.path.lexists(path):
            return []  # created on demand
        with os_errors("listing", path):
            return [name for name in os.listdir(path) if os.path.isdir(f"{path}/{name}")]

    def begin(self, data: bytes) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self._check_vacant()
        for folder in (REFS, COMMITS):
            (self.root / folder).mkdir(exist_ok=True)
        if self.durable:
            sync_parents(self.root)  # durable before the header makes the session visible
        source = temporary(self.root)
        try:
            write_new(source, [data], durable=self.durable)
            # Never renamed over a header: another process may create the session at this moment.
            create_only(source, self.root / SESSION_FILE)
        except FileExistsError:
            raise self._taken("a session") from None
        finally:
            source.unlink(missing_ok=True)
        if self.durable:
            sync_folder(self.root)

    def _check_vacant(self) -> None:
        """Accept the files of an interrupted creation; refuse anything else."""
        for name in os.listdir(self.root):
            if not self._is_leftover(name):
                raise self._taken("a session" if name == SESSION_FILE else repr(name))

    def _is_leftover(self, name: str) -> bool:
        """Whether an interrupted creation may have left a file or folder of this name."""
        if name in (REFS, COMMITS):
            path = self._prefix + name
            return os.path.isdir(path) and not os.path.islink(path) and not os.listdir(path)
        return name.startswith(".tmp-") or name == PUBLISH_LOCK

    def _taken(self, what: str) -> StoreError:
        return StoreError(f"{self.root}: holds {what} already. Open it, or give another path.")

    def is_vacant(self) -> bool:
        if not os.path.lexists(self.root):
            return True
        try:
            return all(map(self._is_leftover, os.listdir(self.root)))
        except OSError:  # not a folder, or not readable: it holds something
            return False

    def clear(self) -> None:
        """Remove the folder, which must be vacant."""
        with os_errors("removing", self.root):
            for name in os.listdir(self.root):
                if name in (REFS, COMMITS):
                    os.rmdir(self.root / name)  # refuses a folder that is not empty any more
                else:
                    (self.root / name).unlink(missing_ok=True)
            os.rmdir(self.root)

    @contextmanager
    def draft(self, key: str) -> Iterator[DirectoryDraft]:
        draft = DirectoryDraft(self.root, key, durable=self.durable)
        try:
            with draft.batch:
                yield draft
        except BaseException:
            draft.undo()
            raise

    def publish(self, branch: str, seq: int, data: bytes) -> None:
        ref = PendingRef.prepare(self.root, branch, seq, data)
        try:
            write_new(ref.temporary, [data], durable=self.durable)
            ref.publish(durable=self.durable)
        finally:
            ref.temporary.unlink(missing_ok=True)

    def create(self, key: str, data: bytes) -> None:
        target = self.root / key
        with os_errors("writing", target):
            for folder in reversed(target.relative_to(self.root).parents[:-1]):
                make_folder(self.root / folder)
            source = temporary(target.parent)
            try:
                write_new(source, [data], durable=self.durable)
                create_only(source, target)
            except FileExistsError as error:
                raise AlreadyExists from error
            finally:
                source.unlink(missing_ok=True)
            if self.durable:
                for folder in target.relative_to(self.root).parents:
                    sync_folder(self.root / folder)

    def discard(self, key: str) -> None:
        path = self.root / key
        with os_errors("removing", path), suppress(FileNotFoundError):
            if path.is_dir() and not path.is_symlink():
                trash = temporary(path.parent)
                os.rename(path, trash)  # atomic for readers
                shutil.rmtree(trash)
            else:
                path.unlink()

    def age(self, key: str) -> float:
        path = self.root / key
        with os_errors("looking at", path), suppress(FileNotFoundError):
            written = [os.lstat(path).st_mtime]
            for folder, _, names in os.walk(path):
                written += [os.lstat(os.path.join(folder, name)).st_mtime for name in names]
            return time.time() - max(written)
        return 0.0

    def unfinished(self) -> list[str]:
        paths = []
        for folder, folders, names in os.walk(self.root):
            if folder == str(self.root):
                folders.remove(COMMITS)  # the collector checks drafts one by one
            each = [*names, *folders]  # also a folder whose removal was interrupted
            paths += [os.path.join(folder, name) for name in each if name.startswith(".tmp-")]
        return [os.path.relpath(path, self.root) for path in paths]

    def commits_lock(self, *, exclusive: bool) -> CommitsLock:
        return CommitsLock(self.root, exclusive=exclusive)

    def writer(self, branch: str) -> WriterLock:
        return WriterLock(self.root / branch_folder(branch))

    def size(self) -> int:
        total = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                try:
                    total += os.lstat(os.path.join(folder, name)).st_size
                except FileNotFoundError:  # a temporary file that was removed meanwhile
                    continue
        return total

    def move(self, target: Path) -> None:
        """Move the session within the file system."""
        root = Path(os.path.realpath(self.root))
        if os.path.lexists(target):
            there = DirectoryBackend(target, "normal")
            if not there.is_vacant():
                raise StoreError(f"{target}: exists already. Give another name.")
            there.clear()
        os.rename(root, target)  # refuses a non-empty folder that was created meanwhile
        if self.durable:
            for folder in {root.parent, target.parent}:
                sync_folder(folder)

    def delete(self) -> None:
        # One rename deletes the session; a crash after it leaves garbage, but no session.
        root = Path(os.path.realpath(self.root))
        trash = temporary(root.parent)
        os.rename(root, trash)
        if self.durable:
            sync_folder(root.parent)
        shutil.rmtree(trash)


class _File:
    """An open file; see `backend.Content`."""

    __slots__ = ("_descriptor", "_path")

    def __init__(self, path: str, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def read_into(self, *buffers: np.ndarray) -> None:
        read_into(self._descriptor, buffers, self._path)

    def skip(self, nbytes: int) -> None:
        os.lseek(self._descriptor, nbytes, os.SEEK_CUR)

    def close(self) -> None:
        os.close(self._descriptor)


if TYPE_CHECKING:

    def _conforms(directory: DirectoryBackend) -> Backend:
        return directory
