"""sha256 of weight files. Those of large files are kept in the user's cache."""

import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from streamlm.checkpoints.home import home

LARGE = 64 << 20  # bytes; smaller files are read each time, in less than a tenth of a second


def digest_of(files: Sequence[Path]) -> str:
    """sha256 over the contents of files, in order.

    A digest over more than `LARGE` bytes is kept in the cache under the path, size, inode and times
    of every file, so that it is computed again once one of them is written or replaced.
    """
    if sum(path.stat().st_size for path in files) < LARGE:
        return _computed(files)
    kept = home() / "digests" / hashlib.sha256(_identity(files).encode()).hexdigest()
    try:
        text = kept.read_text(encoding="ascii")
    except (OSError, ValueError):
        text = ""
    if re.fullmatch(r"[0-9a-f]{64}", text):
        return text
    before = _identity(files)
    digest = _computed(files)
    if _identity(files) == before:
        _keep(kept, digest)
    return digest


def _identity(files: Sequence[Path]) -> str:
    parts = []
    for path in files:
        facts = path.stat()
        times = (facts.st_mtime_ns, facts.st_ctime_ns)
        parts.append(repr((str(path.resolve()), facts.st_size, facts.st_dev, facts.st_ino, *times)))
    return "\n".join(parts)


def _computed(files: Sequence[Path]) -> str:
    sha = hashlib.sha256()
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()


def _keep(path: Path, text: str) -> None:
    """Write a small file at once, or not at all where the cache cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        with open(handle, "w", encoding="ascii") as file:
            file.write(text)
        os.replace(name, path)
    except OSError:
        pass
