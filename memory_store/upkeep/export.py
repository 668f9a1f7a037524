"""Export of a session to one file: an uncompressed Zip archive of the files of its folder.

Any Zip tool unpacks it, and Zarr's `ZipStore` opens each commit. An imported archive is untrusted:
its names are never used as paths, and sizes are checked before memory is allocated.
"""

import errno
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from memory_store.backend import Backend, Buffer, Extent, check_extent, missing
from memory_store.backends.directory_draft import temporary
from memory_store.backends.files import sync, sync_folder
from memory_store.errors import Corrupt, NotFound, StoreError, os_errors
from memory_store.format.json import parse, sealed, unsealed
from memory_store.format.manifest import SCHEMA
from memory_store.format.manifest_reader import check_schema
from memory_store.format.names import SESSION_FILE, ref_key
from memory_store.upkeep.copying import copy_session

CONTENTS = "contents.json"  # the list of files, so that a missing file is detected
LOCAL = 30  # bytes of a local header; the last four are the sizes of the name and the extra field
EPOCH = (1980, 1, 1, 0, 0, 0)  # a constant, so that archives of equal sessions are equal


def export_session(source: Backend, path: str | os.PathLike[str]) -> int:
    """Write a session to one file, which appears when it is complete.

    Returns:
        The size of the file in bytes.

    Raises:
        StoreError: the file exists, or cannot be written.
        NotFound, Corrupt: the source is not a session, or it is damaged; no file is left.
    """
    target = Path(path).absolute()
    with os_errors("exporting", target):
        if os.path.lexists(target):
            raise StoreError(f"{target}: exists already. Give another name, or remove it first.")
        draft = temporary(target.parent)
        try:
            with open(draft, "xb") as file:
                with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                    copy_session(source, _ZipWriter(archive, str(target)))
                    listing = {"schema": SCHEMA, "files": sorted(archive.namelist())}
                    archive.writestr(zipfile.ZipInfo(CONTENTS, EPOCH), sealed(listing))
                file.flush()
                sync(file.fileno())
            _publish(draft, target)
            sync_folder(target.parent)
            return target.stat().st_size
        finally:
            draft.unlink(missing_ok=True)


def _publish(draft: Path, target: Path) -> None:
    """Give a finished file its name; FileExistsError if another process has created it meanwhile.

    Without hard links, an empty file reserves the name until it is replaced.
    """
    try:
        os.link(draft, target)
    except FileExistsError:
        raise
    except OSError:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        try:
            os.replace(draft, target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def import_session(path: str | os.PathLike[str], target: Backend) -> None:
    """Create a session from a file of `export_session`, and verify it on the way.

    Raises:
        NotFound, Corrupt: the file is not an exported session, or it is damaged; nothing is left.
        StoreError: the target is not empty, or the medium refuses.
    """
    source = Path(path).absolute()
    with os_errors("importing", source):
        if not stat.S_ISREG(os.stat(source).st_mode):  # a device may have no end
            raise NotFound(f"{source}: no session here, it is no regular file. Check the path.")
        try:
            with zipfile.ZipFile(source) as archive:
                content = ZipBackend(archive, str(source))
                content.check_complete()
                copy_session(content, target)
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise _no_archive(source, error) from None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise _no_archive(source, "an offset lies before its beginning") from None


def _no_archive(path: Path, why: object) -> Corrupt:
    return Corrupt(f"{path}: not an exported session, or damaged ({why}). Export it again.")


class ZipBackend:
    """The files of a session in a Zip archive, read-only; see `backend.Backend`."""

    remote = False

    def __init__(self, archive: zipfile.ZipFile, path: str) -> None:
        self._archive, self._path = archive, path
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            if info.filename in self._members:
                raise Corrupt(f"{path}: has {info.filename!r} twice. Export it again.")
            self._members[info.filename] = info

    def check_complete(self) -> None:
        """Check that the archive contains the exported files and no others.

        Raises:
            NotFound: the archive holds no session.
            Corrupt: a file is missing, or was added.
        """
        if CONTENTS not in self._members:
            raise NotFound(f"{self._path}: no session here. Check the path, or export one.")
        path = self.name(CONTENTS)
        document = parse(self.read(CONTENTS), path)
        check_schema(document.get("schema"), path)
        if unsealed(document, path).get("files") != sorted(set(self._members) - {CONTENTS}):
            raise Corrupt(f"{self._path}: files are missing or were added. Export it again.")

    def name(self, key: str = "") -> str:
        return f"{self._path}/{key}" if key else self._path

    def read(self, key: str) -> bytes:
        with self._archive.open(self._member(Extent(key, 0, None))) as file:
            return file.read()

    def read_prefix(self, key: str, limit: int) -> tuple[bytes, int]:
        info = self._member(Extent(key, 0, 0))
        with self._archive.open(info) as file:
            return file.read(limit), info.file_size

    def open(self, extent: Extent) -> "_Member":
        # Without zipfile, which seeks by reading everything before the offset.
        info, file = self._member(extent), self._archive.fp
        assert file is not None
        begin = os.pread(file.fileno(), LOCAL, info.header_offset)
        if len(begin) < LOCAL:
            raise Corrupt(f"{self.name(extent.key)}: too short. Export it again.")
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
        check_extent(name, info.file_size, extent)
        return info

    def prefetch(
        self, wanted: Callable[[], Iterable[Extent]]
    ) -> AbstractContextManager["ZipBackend"]:
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

    def commits_lock(self, *, exclusive: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def is_vacant(self) -> bool:
        return not self._members

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
        raise StoreError(f"{self._path}: an archive is read-only. Import it first.")


class _Member:
    """An extent of a file in an archive, without checksums; see `backend.Content`."""

    def __init__(self, descriptor: int, at: int, path: str) -> None:
        self._descriptor, self._at, self._path = descriptor, at, path

    def read_into(self, *buffers: np.ndarray) -> None:
        for buffer in buffers:
            view = buffer.data
            while len(view):
                count = os.preadv(self._descriptor, [view], self._at)
                if not count:
                    raise Corrupt(f"{self._path}: too short. Export it again.")
                self._at += count
                view = view[count:]

    def skip(self, nbytes: int) -> None:
        self._at += nbytes

    def close(self) -> None:
        pass  # the descriptor belongs to the archive


class _ZipWriter(ZipBackend):
    """An archive that is being written."""

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
        pass  # the caller removes the whole file


class _Draft:
    """A commit that is being written to an archive; see `backend.Draft`."""

    def __init__(self, writer: _ZipWriter, key: str) -> None:
        self._writer, self._key = writer, key

    def write(self, key: str, buffers: Sequence[Buffer]) -> None:
        self._writer.create(f"{self._key}/{key}" if key else self._key, b"".join(buffers))

    def persist(self) -> None:
        pass

    def publish(self, branch: str, seq: int, data: bytes) -> None:
        self._writer.publish(branch, seq, data)


if TYPE_CHECKING:

    def _conforms(archive: ZipBackend) -> Backend:
        return archive
