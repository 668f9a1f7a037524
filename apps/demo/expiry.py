"""Shelves of browsers that nobody comes back to: removed after some days, never while in use.

A browser that has lost its cookie cannot get at its shelf any more, and most never come back. When
a shelf was last used is the time of its folder, which requests set anew, or of the last save in it.
"""

import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from apps.demo.shelf import Shelf
from memory_store import Locked, StoreError, places

DAY = 86_400.0
EVERY = 3600.0  # seconds between two looks, and between two times that a folder is set to
GONE = ".gone-"  # before the names of folders that are being removed


class BrowserShelves:
    """The folders of browsers' shelves, by the browsers' names.

    Args:
        folder: holds them, and nothing else.
        keep_days: without use; 0 keeps all for ever.
    """

    def __init__(self, folder: str | Path, *, keep_days: int) -> None:
        self.folder, self.keep_days = Path(folder), keep_days
        self._lock = threading.Lock()  # a shelf is either asked for or taken away, not both

    def used(self, name: str, *, now: float | None = None) -> None:
        """Note that a shelf is used; nothing where there is none yet."""
        path, now = self.folder / name, time.time() if now is None else now
        with self._lock, suppress(FileNotFoundError):
            if path.stat().st_mtime < now - EVERY:
                os.utime(path, (now, now))

    def clear(self, *, now: float | None = None) -> list[str]:
        """Remove the shelves that were not used for so long; gives their names."""
        if not self.keep_days or not self.folder.is_dir():
            return []
        before = (time.time() if now is None else now) - self.keep_days * DAY
        for left in self.folder.glob(f"{GONE}*"):  # by a process that ended meanwhile
            shutil.rmtree(left, ignore_errors=True)
        names = [path.name for path in self.folder.iterdir() if _is_shelf(path)]
        return [name for name in sorted(names) if self._removed(name, before)]

    def _removed(self, name: str, before: float) -> bool:
        path, gone = self.folder / name, self.folder / f"{GONE}{name}"
        try:
            with _nobody_writes(path), self._lock:
                if _last_used(path) >= before:
                    return False
                path.rename(gone)
        except (Locked, OSError):  # in use, or the disk refuses: another time
            return False
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def keep_clear(self) -> None:
        """Clear now and every hour, in a thread, as long as the process runs."""

        def main() -> None:
            while True:
                self.clear()
                time.sleep(EVERY)

        if self.keep_days:
            threading.Thread(target=main, name="streamlm clearing", daemon=True).start()


def _is_shelf(path: Path) -> bool:
    known = re.fullmatch(r"[0-9a-f]{32}", path.name) is not None
    return known and path.is_dir() and not path.is_symlink()


def _last_used(path: Path) -> float:
    saved = [row.saved or 0.0 for row in Shelf(str(path)).rows()]
    return max(path.stat().st_mtime, *saved, 0.0)


@contextmanager
def _nobody_writes(path: Path) -> Iterator[None]:
    """Hold all branches of all sessions of a shelf.

    Raises:
        Locked: somebody writes in one of them.
    """
    with ExitStack() as stack:
        for name in places.session_names(path):
            try:
                store = places.open_store(places.named(path, name))
                for branch in {"main", *store.branches()}:
                    stack.enter_context(store.writer(branch))
            except Locked:
                raise
            except StoreError:  # damaged: nobody writes in it
                pass
        yield
