"""A session in a folder of a local filesystem."""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from memory_store.backend import Backend, Extent, Taken
from memory_store.backends.directory_draft import FolderDraft, Pending, create_only, temporary
from memory_store.backends.files import (
    check_size,
    make_folder,
    open_regular,
    read_beginning,
    read_document,
    read_into,
    sync_folder,
    sync_way,
    write_new,
)
from memory_store.backends.lock import NamingLock, WriterLock
from memory_store.errors import Corrupt, StoreError, from_os, os_errors
from memory_store.format.names import COMMITS, REFS, SESSION_FILE, branch_folder

Durability = Literal["full", "normal"]


class Directory:
    """The files of a session in a folder; see `backend.Backend`."""

    remote = False

    def __init__(self, path: str | os.PathLike[str], durability: Durability) -> None:
        if durability not in ("full", "normal"):
            raise ValueError(f"durability is 'full' or 'normal', not {durability!r}")
        self.root = Path(path).absolute()
        self.durable = durability == "full"
        self._prefix = os.path.join(self.root, "")  # Path costs as much as reading a small file

    def name(self, key: str = "") -> str:
        return self._prefix + key if key else str(self.root)

    def read(self, key: str) -> bytes:
        return read_document(self._prefix + key)

    def beginning(self, key: str, most: int) -> tuple[bytes, int]:
        return read_beginning(self._prefix + key, most)

    def open(self, extent: Extent) -> "_File":
        path = self._prefix + extent.key
        return _File(path, open_regular(path, extent))

    def check_size(self, extent: Extent) -> None:
        check_size(self._prefix + extent.key, extent)

    def ahead(self, wanted: Callable[[], Iterable[Extent]]) -> AbstractContextManager["Directory"]:
        return nullcontext(self)

    def stamp(self, key: str) -> object:
        try:
            found = os.lstat(self._prefix + key)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def exists(self, key: str) -> bool:
        path = self._prefix + key
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:  # there may be one, but it is not for us to see
            raise from_os(error, "reading", path) from error
        return True

    def files(self, folder: str) -> list[str]:
        path = self._prefix + folder
        try:
            return os.listdir(path)
        except FileNotFoundError:
            # A branch that was never begun is not the same as a disk that is gone.
            parent = os.path.dirname(path)
            if not os.path.lexists(parent):
                raise Corrupt(f"{parent}: missing. Restore it from a copy.") from None
            return []
        except OSError as error:
            raise from_os(error, "listing", self.name(folder)) from error

    def folders(self, folder: str) -> list[str]:
        path = self._prefix + folder
        if folder not in (REFS, COMMITS) and not os.path.lexists(path):
            return []  # made when they are needed
        with os_errors("listing", path):
            return [name for name in os.listdir(path) if os.path.isdir(f"{path}/{name}")]

    def begin(self, data: bytes) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self._check_vacant()
        for folder in (REFS, COMMITS):
            (self.root / folder).mkdir(exist_ok=True)
        if self.durable:
            sync_way(self.root)  # a header that is seen has all around it on disk
        source = temporary(self.root)
        try:
            write_new(source, [data], durable=self.durable)
            os.rename(source, self.root / SESSION_FILE)
        except BaseException:
            source.unlink(missing_ok=True)
            raise
        if self.durable:
            sync_folder(self.root)

    def _check_vacant(self) -> None:
        """Pass over what a creation that was cut short has left; refuse anything else."""
        for name in os.listdir(self.root):
            unfinished = name in (REFS, COMMITS) and not os.listdir(self.root / name)
            if not unfinished and not name.startswith(".tmp-"):
                what = "a session" if name == SESSION_FILE else repr(name)
                raise StoreError(
                    f"{self.root}: holds {what} already. Open it, or give another path."
                )

    @contextmanager
    def draft(self, key: str) -> Iterator[FolderDraft]:
        draft = FolderDraft(self.root, key, durable=self.durable)
        try:
            with draft.batch:
                yield draft
        except BaseException:
            draft.undo()
            raise

    def publish(self, branch: str, seq: int, data: bytes) -> None:
        ref = Pending.prepare(self.root, branch, seq, data)
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
                raise Taken from error
            finally:
                source.unlink(missing_ok=True)
            if self.durable:
                for folder in target.relative_to(self.root).parents:
                    sync_folder(self.root / folder)

    def discard(self, key: str) -> None:
        path = self.root / key
        with os_errors("removing", path), suppress(FileNotFoundError):
            if path.is_dir() and not path.is_symlink():
                grave = temporary(path.parent)  # at once, for those who read
                os.rename(path, grave)
                shutil.rmtree(grave)
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
        found = []
        for folder, folders, names in os.walk(self.root):
            if folder == str(self.root):
                folders.remove(COMMITS)  # drafts, which are looked at one by one
            each = [*names, *folders]  # a folder whose removal was cut short is one too
            found += [os.path.join(folder, name) for name in each if name.startswith(".tmp-")]
        return [os.path.relpath(path, self.root) for path in found]

    def naming(self, *, alone: bool) -> NamingLock:
        return NamingLock(self.root, alone=alone)

    def writer(self, branch: str) -> WriterLock:
        return WriterLock(self.root / branch_folder(branch))

    def size(self) -> int:
        total = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                try:
                    total += os.lstat(os.path.join(folder, name)).st_size
                except FileNotFoundError:  # a temporary file that is gone again
                    continue
        return total

    def move(self, target: Path) -> None:
        """Give the session another place in the same file system."""
        root = Path(os.path.realpath(self.root))
        if os.path.lexists(target):
            raise StoreError(f"{target}: something is there already. Give another name.")
        os.rename(root, target)  # refuses a folder with something in it, made meanwhile
        if self.durable:
            for folder in {root.parent, target.parent}:
                sync_folder(folder)

    def delete(self) -> None:
        # One rename ends the session; what a crash leaves after it is no session any more.
        root = Path(os.path.realpath(self.root))
        grave = temporary(root.parent)
        os.rename(root, grave)
        if self.durable:
            sync_folder(root.parent)
        shutil.rmtree(grave)


class _File:
    """A file that is being read; see `backend.Content`."""

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

    def _conforms(directory: Directory) -> Backend:
        return directory
