"""Room for uploads and exports: the oldest are removed where they take too much of the disk."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

TOTAL = 1000 * 1000 * 1000  # bytes of uploads and exports that are kept for a while
IN_USE = 300.0  # seconds in which a file is not removed to make room


def make_room(folder: Path, most: int, *, now: float | None = None) -> bool:
    """Remove the oldest files until those in a folder take at most `most` bytes.

    Returns:
        whether they do; files that may be in use are not removed.
    """
    now = time.time() if now is None else now
    found = sorted(_files(folder))
    total = sum(size for _, size, _ in found)
    for modified, size, path in found:
        if total <= most or modified > now - IN_USE:
            break
        try:
            os.unlink(path)
        except OSError:
            continue
        total -= size
    return total <= most


def _files(folder: Path) -> Iterator[tuple[float, int, str]]:
    """The time, the size and the path of each file in a folder and its folders."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            try:
                status = os.stat(path)
            except OSError:  # removed meanwhile
                continue
            yield status.st_mtime, status.st_size, path
