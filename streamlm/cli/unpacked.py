"""Folders, compressed files and documents as sources of text: unpacked while a command runs.

Sources are recognised by content, so an interrupted command that unpacks the same files resumes.
"""

import bz2
import gzip
import lzma
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from streamlm.documents import KINDS, document_text

ZSTD = b"\x28\xb5\x2f\xfd"
MODULES: dict[bytes, Any] = {b"\x1f\x8b": gzip, b"\xfd7zXZ\x00": lzma, b"BZh": bz2}
DAMAGE = (zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError, RuntimeError)
SUFFIXES = (".gz", ".xz", ".bz2", ".zst")


def unpacked(path: Path, folder: Path) -> list[Path]:
    """The files of text that a path stands for, in reading order.

    A directory stands for its files, those of its folders included, by name and without hidden
    ones; a .zip file for its members, in its order; a gzip, xz, bzip2 or zstd file for its content;
    an HTML, EPUB or PDF file for its text.

    Args:
        folder: an empty one, for what is unpacked.

    Raises:
        ValueError: nothing is in it, or it is damaged, or a document has no text.
    """
    found = list(_files(path, folder))
    if not found:
        raise ValueError(
            f"{path} holds no files; allowed: text files, folders and archives of them"
        )
    return found


def _files(path: Path, folder: Path) -> Iterator[Path]:
    if path.is_dir():
        for each in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in each.relative_to(path).parts)
            if each.is_file() and not hidden:
                yield from _files(each, folder)
        return
    with open(path, "rb") as file:
        start = file.read(6)
    try:
        if path.suffix.lower() == ".zip" and start.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    parts = PurePosixPath(member.filename).parts
                    if not member.is_dir() and not any(p.startswith((".", "__")) for p in parts):
                        with archive.open(member) as packed:
                            copied = _copied(packed, folder, parts[-1])
                        yield _text_of(copied, folder, f"{copied.name} in {path}")
            return
        modules = {**MODULES, ZSTD: _zstandard(path)} if start.startswith(ZSTD) else MODULES
        for magic, module in modules.items():
            if start.startswith(magic):
                name = path.stem if path.suffix.lower() in SUFFIXES else path.name
                with module.open(path) as packed:
                    copied = _copied(packed, folder, name)
                yield _text_of(copied, folder, f"{copied.name} in {path}")
                return
    except Exception as error:
        if not isinstance(error, DAMAGE) and type(error).__name__ != "ZstdError":
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a full disk, say
        raise ValueError(f"{path} is damaged or encrypted: {error}") from None
    yield _text_of(path, folder, str(path))


def _text_of(path: Path, folder: Path, shown: str) -> Path:
    """A file of text: of a document, its text in a file of its own."""
    if path.suffix.lower() not in KINDS:
        return path
    target = _place(folder, path.name)
    target.write_text(document_text(path, shown=shown), encoding="utf-8")
    return target


def _zstandard(path: Path) -> Any:
    """The module that reads zstd, which no Python before 3.14 comes with."""
    try:
        import zstandard
    except ImportError:
        raise ValueError(
            f"{path} is compressed by zstd; allowed: pip install 'streamlm[zstd]', or gzip, xz"
        ) from None
    return zstandard


def _copied(packed: IO[bytes], folder: Path, name: str) -> Path:
    """Content in a file of its own."""
    target = _place(folder, name)
    with open(target, "wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)
    return target


def _place(folder: Path, name: str) -> Path:
    """A place for a file under its own name, which messages show."""
    place = folder / str(len(list(folder.iterdir())))
    place.mkdir()
    return place / name
