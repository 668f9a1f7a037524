"""The store on each medium: a folder, object storage, a dict."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from memory_store.backends.directory import Directory, Durability
from memory_store.backends.memory import Files, InMemory
from memory_store.backends.object_storage import Objects
from memory_store.errors import Corrupt
from memory_store.format.header import Header, create_header, read_header
from memory_store.format.names import COMMITS, REFS, commit_key, is_packed
from memory_store.store import Store
from memory_store.types import JSON, Commit, Ref

if TYPE_CHECKING:
    import zarr


class DirectoryStore(Store):
    """One session in a folder; see `protocol.MemoryStore` for what it does.

    `create` and `open` make one. Opening writes nothing, so a session in a read-only folder can be
    listed, loaded and verified. A store may be shared by threads, and by processes that fork.

    Attributes:
        path: the session's folder, absolute.
    """

    path: Path

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        attributes: Mapping[str, JSON] | None = None,
        fingerprints: Mapping[str, str] | None = None,
        durability: Durability = "full",
    ) -> Self:
        """Begin a session in a new or empty folder.

        Args:
            path: the folder; its parents are made if need be.
            attributes: what the session is; never changes.
            fingerprints: of the weights, the tokenizer, …: recorded with commits that name none.
            durability: "full" waits for the disk at each commit. "normal" does not: after a crash
                of the system (not of the process) the newest commits may be damaged, which is
                noticed, and older ones are still there.

        Raises:
            StoreError: the folder holds something, or cannot be written to.
        """
        directory = Directory(path, durability)
        header = create_header(directory, attributes=attributes, fingerprints=fingerprints)
        return cls(directory, header)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, durability: Durability = "full") -> Self:
        """Open the session in a folder.

        Raises:
            NotFound: no session there.
            Corrupt: its description is damaged.
            UnsupportedSchema: a later version wrote it.
        """
        directory = Directory(path, durability)
        header = read_header(directory)
        for folder in (directory.root / REFS, directory.root / COMMITS):
            if folder.is_symlink() or not folder.is_dir():
                raise Corrupt(f"{folder}: missing, or not a folder. Restore it from a copy.")
        return cls(directory, header)

    def __init__(self, directory: Directory, header: Header) -> None:
        super().__init__(directory, header)
        self.path = directory.root

    def group(self, ref: Ref | Commit) -> "zarr.Group":
        """The commit as a read-only Zarr group, for looking around with Zarr's own tools."""
        import zarr

        commit = ref.commit if isinstance(ref, Ref) else ref
        place = self.path / commit_key(commit.name)
        kind = zarr.storage.ZipStore if is_packed(commit.name) else zarr.storage.LocalStore
        return zarr.open_group(kind(place, read_only=True), mode="r")


class ObjectStore(Store):
    """One session in object storage; see `protocol.MemoryStore` for what it does.

    `create` and `open` make one. What `commit` returns for has been acknowledged by the storage. No
    lock keeps a second writer out: the one that commits later gets `Conflict`. A store may be
    shared by threads.

    Args of both: `url` is `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`;
    see `object_client.connect` for where credentials come from.
    """

    @classmethod
    def create(
        cls,
        url: str,
        *,
        attributes: Mapping[str, JSON] | None = None,
        fingerprints: Mapping[str, str] | None = None,
    ) -> Self:
        """Begin a session under a prefix that has no objects.

        Args:
            url: the bucket and the prefix.
            attributes: what the session is; never changes.
            fingerprints: of the weights, the tokenizer, …: recorded with commits that name none.

        Raises:
            ValueError: not such a URL.
            StoreError: there are objects, or the storage refuses.
        """
        backend = Objects.at(url)
        header = create_header(backend, attributes=attributes, fingerprints=fingerprints)
        return cls(backend, header)

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the session under a prefix.

        Raises:
            ValueError: not such a URL.
            NotFound: no session there.
            Corrupt: its description is damaged.
            UnsupportedSchema: a later version wrote it.
            StoreError: the storage refuses.
        """
        backend = Objects.at(url)
        return cls(backend, read_header(backend))


class InMemoryStore(Store):
    """One session in a dict of the files that a folder would hold.

    The dict is the session: `open` with the same one gives another store of the same session, in
    this thread or another. Nothing outlives the process.
    """

    @classmethod
    def create(
        cls,
        files: Files | None = None,
        *,
        attributes: Mapping[str, JSON] | None = None,
        fingerprints: Mapping[str, str] | None = None,
    ) -> Self:
        """Begin a session in an empty dict, a new one if None.

        Raises:
            StoreError: the dict holds something.
        """
        backend = InMemory({} if files is None else files)
        header = create_header(backend, attributes=attributes, fingerprints=fingerprints)
        return cls(backend, header)

    @classmethod
    def open(cls, files: Files) -> Self:
        """Open the session in a dict.

        Raises:
            NotFound: no session there.
            Corrupt: its description is damaged.
        """
        backend = InMemory(files)
        return cls(backend, read_header(backend))
