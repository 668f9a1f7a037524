"""Folders that are computed once: written beside their place, then renamed into it."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Content = TypeVar("Content")

NEW = ".new"  # ends the name of a folder that is being written


def computed_once(
    folder: Path, *, read: Callable[[Path], Content | None], write: Callable[[Path], None]
) -> Content:
    """The content of a folder, which is written first if it is missing or damaged.

    Processes that need the same folder at the same time may each write one; the first to finish
    wins. A half-written folder of a dead process is removed by the next writer.

    Args:
        read: returns the content of a folder, or None if it is missing or damaged. The content must
            not open files of the folder later, which may be renamed by then.
        write: writes the content to an empty folder.
    """
    content = read(folder)
    if content is not None:
        return content
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder.parent)
    fresh, lock = _own_folder(folder)
    try:
        write(fresh)
        for path in (*fresh.iterdir(), fresh):
            _sync(path)
        content = read(fresh)
        if content is None:
            raise OSError(f"{fresh}: the new folder cannot be read back")
        try:
            os.replace(fresh, folder)
        except OSError:  # another folder is in place
            if read(folder) is None:
                shutil.rmtree(folder)
                os.replace(fresh, folder)
        _sync(folder.parent)
        return content
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # unless it was renamed
        os.close(lock)


def _own_folder(folder: Path) -> tuple[Path, int]:
    """A new folder beside `folder`, and the descriptor that holds its writer's lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", suffix=NEW, dir=folder.parent))
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another process removed it as a leftover before it was locked
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            return path, lock  # without locks, `_remove_leftovers` keeps it
        if path.exists():
            return path, lock
        os.close(lock)


def _remove_leftovers(parent: Path) -> None:
    """Remove folders of dead writers: the system releases the lock of a process that ends."""
    for path in parent.glob(f"*{NEW}"):
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass  # its writer is alive, or the file system has no locks
        finally:
            os.close(lock)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
