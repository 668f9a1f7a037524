"""Expiry of abandoned browser shelves: removed after some days, never while in use.

A browser that has lost its cookie cannot reach its shelf any more, and most never return. A shelf
was last used at the modification time of its folder, which requests refresh, or at the last save
in it, whichever is later.
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
INTERVAL = 3600.0  # seconds between two clean-ups, and between two refreshes of a folder's time
REMOVED = ".gone-"  # prefix of folders that are being removed


class BrowserShelves:
    """The shelves of browsers, in one folder.

    Args:
        folder: holds the shelves, and nothing else.
        keep_days: days without use after which a shelf expires; 0 disables expiry.
    """

    def __init__(self, folder: str | Path, *, keep_days: int) -> None:
        self.folder, self.keep_days = Path(folder), keep_days
        self._lock = threading.Lock()  # a shelf is touched or removed, never both at once

    def touch(self, name: str, *, now: float | None = None) -> None:
        """Record that a shelf is in use; does nothing if it does not exist yet."""
        path, now = self.folder / name, time.time() if now is None else now
        with self._lock, suppress(FileNotFoundError):
            if path.stat().st_mtime < now - INTERVAL:
                os.utime(path, (now, now))

    def remove_expired(self, *, now: float | None = None) -> list[str]:
        """Remove the expired shelves and return their names."""
        if not self.keep_days or not self.folder.is_dir():
            return []
        cutoff = (time.time() if now is None else now) - self.keep_days * DAY
        for leftover in self.folder.glob(f"{REMOVED}*"):  # the process ended while removing
            shutil.rmtree(leftover, ignore_errors=True)
        names = [path.name for path in self.folder.iterdir() if _is_shelf(path)]
        return [name for name in sorted(names) if self._remove(name, cutoff)]

    def _remove(self, name: str, cutoff: float) -> bool:
        path, removed = self.folder / name, self.folder / f"{REMOVED}{name}"
        try:
            with _locked(path), self._lock:
                if _last_used(path) >= cutoff:
                    return False
                path.rename(removed)
        except (Locked, OSError):  # in use, or a disk error: the next clean-up tries again
            return False
        shutil.rmtree(removed, ignore_errors=True)
        return True

    def start_cleanup(self) -> None:
        """Remove expired shelves now and every hour, in a daemon thread."""

        def main() -> None:
            while True:
                self.remove_expired()
                time.sleep(INTERVAL)

        if self.keep_days:
            threading.Thread(target=main, name="streamlm expiry", daemon=True).start()


def _is_shelf(path: Path) -> bool:
    named = re.fullmatch(r"[0-9a-f]{32}", path.name) is not None
    return named and path.is_dir() and not path.is_symlink()


def _last_used(path: Path) -> float:
    saved = [row.saved or 0.0 for row in Shelf(str(path)).rows()]
    return max(path.stat().st_mtime, *saved, 0.0)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock every branch of every session of a shelf.

    Raises:
        Locked: another process, or another thread, is writing to one of them.
    """
    with ExitStack() as stack:
        for name in places.session_names(path):
            try:
                store = places.open_store(places.named(path, name))
                for branch in {"main", *store.branches()}:
                    stack.enter_context(store.writer(branch))
            except Locked:
                raise
            except StoreError:  # a corrupt session has no writer
                pass
        yield
