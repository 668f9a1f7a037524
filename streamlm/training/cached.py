"""Folders that are computed once: written beside their place and renamed, so never seen in part."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")

NEW = ".new"  # ends the name of a folder that is being written


def computed_once(
    folder: Path, *, read: Callable[[Path], Found | None], write: Callable[[Path], None]
) -> Found:
    """What a folder holds; where it is missing or damaged, it is written first.

    Processes that need the same folder at once may each write one; the first to end is kept. What
    a killed process left half-written is removed by the next one that writes beside it.

    Args:
        read: what is in a folder, or None where it is missing or damaged. It is kept open, so what
            it returns must not open files later on.
        write: writes to an empty folder.
    """
    found = read(folder)
    if found is not None:
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder.parent)
    fresh, lock = _own_folder(folder)
    try:
        write(fresh)
        for path in (*fresh.iterdir(), fresh):
            _sync(path)
        found = read(fresh)
        if found is None:
            raise OSError(f"{fresh}: what was written cannot be read back")
        try:
            os.replace(fresh, folder)
        except OSError:  # something stands there
            if read(folder) is None:
                shutil.rmtree(folder)
                os.replace(fresh, folder)
        _sync(folder.parent)
        return found
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # unless it is in its place
        os.close(lock)


def _own_folder(folder: Path) -> tuple[Path, int]:
    """A new folder beside `folder`, and a descriptor that tells others that its writer lives."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", suffix=NEW, dir=folder.parent))
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # taken for a leftover before it could be locked
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            return path, lock  # a file system without locks: nobody removes it, see below
        if path.exists():
            return path, lock
        os.close(lock)


def _remove_leftovers(parent: Path) -> None:
    """Remove what writers left that are dead; the system lets go of a lock when a process ends."""
    for path in parent.glob(f"*{NEW}"):
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass  # its writer lives, or nobody can tell
        finally:
            os.close(lock)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
