"""A session as one file: a Zip archive of what a folder would hold, not compressed.

Any tool unpacks it, and Zarr's `ZipStore` opens each commit. An archive that somebody else has
made is as little trusted as a folder: names are never paths, and sizes are checked before anything
is allocated.
"""

import errno
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from memory_store.backend import Backend, Buffer, Extent, check_found, missing
from memory_store.backends.directory_draft import temporary
from memory_store.backends.files import sync, sync_folder
from memory_store.errors import Corrupt, NotFound, StoreError, os_errors
from memory_store.format.json import parse, sealed, unsealed
from memory_store.format.manifest import SCHEMA
from memory_store.format.manifest_reader import check_schema
from memory_store.format.names import SESSION_FILE, ref_key
from memory_store.upkeep.copying import copy_session

CONTENTS = "contents.json"  # a name that is damaged would be a file that nobody misses
LOCAL = 30  # bytes before a member's name; the last four say how long that and what follows are
EPOCH = (1980, 1, 1, 0, 0, 0)  # archives of equal sessions are equal


def export_session(source: Backend, path: str | os.PathLike[str]) -> int:
    """Write a session to one file; it appears when it is complete.

    Returns:
        Its size in bytes.

    Raises:
        StoreError: the file exists, or cannot be written.
        NotFound, Corrupt: the source is no session, or damaged; no file is left then.
    """
    target = Path(path).absolute()
    with os_errors("exporting", target):
        if os.path.lexists(target):
            raise StoreError(f"{target}: exists already. Give another name, or remove it first.")
        draft = temporary(target.parent)
        try:
            with open(draft, "xb") as file:
                with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                    copy_session(source, _Writer(archive, str(target)))
                    listing = {"schema": SCHEMA, "files": sorted(archive.namelist())}
                    archive.writestr(zipfile.ZipInfo(CONTENTS, EPOCH), sealed(listing))
                file.flush()
                sync(file.fileno())
            os.link(draft, target)  # not over a file that somebody has made meanwhile
            sync_folder(target.parent)
            return target.stat().st_size
        finally:
            draft.unlink(missing_ok=True)


def import_session(path: str | os.PathLike[str], target: Backend) -> None:
    """Unpack a session that `export_session` wrote, checking everything.

    Raises:
        NotFound, Corrupt: not such a file, or damaged; nothing is left then.
        StoreError: the target holds something, or refuses.
    """
    source = Path(path).absolute()
    with os_errors("importing", source):
        try:
            with zipfile.ZipFile(source) as archive:
                content = Archive(archive, str(source))
                content.check_complete()
                copy_session(content, target)
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise _no_archive(source, error) from None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise _no_archive(source, "it names a place before its beginning") from None


def _no_archive(path: Path, why: object) -> Corrupt:
    return Corrupt(f"{path}: no archive of a session, or a damaged one ({why}). Export it again.")


class Archive:
    """The files of a session in an archive, to be read; see `backend.Backend`."""

    remote = False

    def __init__(self, archive: zipfile.ZipFile, path: str) -> None:
        self._archive, self._path = archive, path
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            if info.filename in self._members:
                raise Corrupt(f"{path}: has {info.filename!r} twice. Export it again.")
            self._members[info.filename] = info

    def check_complete(self) -> None:
        """Check that it holds what was exported, and nothing else.

        Raises:
            NotFound: it holds no session.
            Corrupt: something is missing, or was added.
        """
        if CONTENTS not in self._members:
            raise NotFound(f"{self._path}: no session here. Check the path, or export one.")
        path = self.name(CONTENTS)
        document = parse(self.read(CONTENTS), path)
        check_schema(document.get("schema"), path)
        if unsealed(document, path).get("files") != sorted(set(self._members) - {CONTENTS}):
            raise Corrupt(f"{self._path}: not all that was exported, or more. Export it again.")

    def name(self, key: str = "") -> str:
        return f"{self._path}/{key}" if key else self._path

    def read(self, key: str) -> bytes:
        with self._archive.open(self._member(Extent(key, 0, None))) as file:
            return file.read()

    def beginning(self, key: str, most: int) -> tuple[bytes, int]:
        info = self._member(Extent(key, 0, 0))
        with self._archive.open(info) as file:
            return file.read(most), info.file_size

    def open(self, extent: Extent) -> "_Member":
        # Not by zipfile, which goes to a place by reading all that stands before it.
        info, file = self._member(extent), self._archive.fp
        assert file is not None
        begin = os.pread(file.fileno(), LOCAL, info.header_offset)
        if len(begin) < LOCAL:
            raise Corrupt(f"{self.name(extent.key)}: ends too soon. Export it again.")
        around = int.from_bytes(begin[-4:-2], "little") + int.from_bytes(begin[-2:], "little")
        at = info.header_offset + LOCAL + around + extent.start
        return _Member(file.fileno(), at, self.name(extent.key))

    def check_size(self, extent: Extent) -> None:
        self._member(extent)

    def _member(self, extent: Extent) -> zipfile.ZipInfo:
        info, name = self._members.get(extent.key), self.name(extent.key)
        if info is None:
            raise missing(name)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise Corrupt(f"{name}: compressed or encrypted. Export it again.")
        check_found(name, info.file_size, extent)
        return info

    def ahead(self, wanted: Callable[[], Iterable[Extent]]) -> AbstractContextManager["Archive"]:
        return nullcontext(self)

    def stamp(self, key: str) -> object:
        return None

    def exists(self, key: str) -> bool:
        return key in self._members

    def files(self, folder: str) -> list[str]:
        return [name for name in self._below(folder) if "/" not in name]

    def folders(self, folder: str) -> list[str]:
        return list({name.split("/")[0] for name in self._below(folder) if "/" in name})

    def _below(self, folder: str) -> list[str]:
        start = f"{folder}/"
        return [key.removeprefix(start) for key in self._members if key.startswith(start)]

    def size(self) -> int:
        return sum(info.file_size for info in self._members.values())

    def age(self, key: str) -> float:
        return 0.0

    def unfinished(self) -> list[str]:
        return []

    def naming(self, *, alone: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def begin(self, data: bytes) -> None:
        self._refuse()

    def draft(self, key: str) -> NoReturn:
        self._refuse()

    def publish(self, branch: str, seq: int, data: bytes) -> None:
        self._refuse()

    def create(self, key: str, data: bytes) -> None:
        self._refuse()

    def discard(self, key: str) -> None:
        self._refuse()

    def writer(self, branch: str) -> NoReturn:
        self._refuse()

    def delete(self) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise StoreError(f"{self._path}: an archive does not change. Import it first.")


class _Member:
    """A part of a file in an archive; see `backend.Content`. Checksums are for who reads it."""

    def __init__(self, descriptor: int, at: int, path: str) -> None:
        self._descriptor, self._at, self._path = descriptor, at, path

    def read_into(self, *buffers: np.ndarray) -> None:
        for buffer in buffers:
            view = buffer.data
            while len(view):
                count = os.preadv(self._descriptor, [view], self._at)
                if not count:
                    raise Corrupt(f"{self._path}: ends too soon. Export it again.")
                self._at += count
                view = view[count:]

    def skip(self, nbytes: int) -> None:
        self._at += nbytes

    def close(self) -> None:
        pass  # the archive's own


class _Writer(Archive):
    """An archive while it is written."""

    def begin(self, data: bytes) -> None:
        self.create(SESSION_FILE, data)

    @contextmanager
    def draft(self, key: str) -> Iterator["_Draft"]:  # type: ignore[override]
        yield _Draft(self, key)

    def publish(self, branch: str, seq: int, data: bytes) -> None:
        self.create(ref_key(branch, seq), data)

    def create(self, key: str, data: bytes) -> None:
        info = zipfile.ZipInfo(key, EPOCH)
        info.external_attr = 0o644 << 16
        self._archive.writestr(info, data)

    def delete(self) -> None:
        pass  # the file is given up as a whole


class _Draft:
    """A commit in an archive; see `backend.Draft`."""

    def __init__(self, writer: _Writer, key: str) -> None:
        self._writer, self._key = writer, key

    def write(self, key: str, buffers: Sequence[Buffer]) -> None:
        self._writer.create(f"{self._key}/{key}" if key else self._key, b"".join(buffers))

    def keep(self) -> None:
        pass

    def publish(self, branch: str, seq: int, data: bytes) -> None:
        self._writer.publish(branch, seq, data)


if TYPE_CHECKING:

    def _conforms(archive: Archive) -> Backend:
        return archive
