"""The memory store on each medium: a folder, object storage, a dict."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from memory_store.backends.directory import DirectoryBackend, Durability
from memory_store.backends.memory import Files, MemoryBackend
from memory_store.backends.object_storage import ObjectBackend
from memory_store.errors import Corrupt
from memory_store.format.header import Header, create_header, read_header
from memory_store.format.names import COMMITS, REFS, commit_key, is_packed
from memory_store.store import Store
from memory_store.types import JSON, Commit, Ref

if TYPE_CHECKING:
    import zarr


class DirectoryStore(Store):
    """One session in a folder; `protocol.MemoryStore` documents the methods.

    Construct it with `create` or `open`. Opening writes nothing, so a session in a read-only folder
    can be listed, loaded and verified. Threads may share a store, and so may forked processes.

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
        """Create a session in a new or empty folder.

        Args:
            path: the folder; missing parents are created.
            attributes: a description of the session; it never changes.
            fingerprints: of the weights, the tokenizer, …: the default of `commit`.
            durability: "full" waits for the disk at each commit. "normal" does not: a crash of the
                system (not of the process) may damage the newest commits; the damage is detected,
                and older commits remain.

        Raises:
            StoreError: the folder is not empty, or cannot be written to.
        """
        directory = DirectoryBackend(path, durability)
        header = create_header(directory, attributes=attributes, fingerprints=fingerprints)
        return cls(directory, header)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, durability: Durability = "full") -> Self:
        """Open the session in a folder.

        Raises:
            NotFound: the folder holds no session.
            Corrupt: `session.json` is damaged, or a folder of the session is missing.
            UnsupportedSchema: a later version wrote the session.
        """
        directory = DirectoryBackend(path, durability)
        header = read_header(directory)
        for folder in (directory.root / REFS, directory.root / COMMITS):
            if folder.is_symlink() or not folder.is_dir():
                raise Corrupt(f"{folder}: missing, or not a folder. Restore it from a copy.")
        return cls(directory, header)

    def __init__(self, directory: DirectoryBackend, header: Header) -> None:
        super().__init__(directory, header)
        self.path = directory.root

    def group(self, ref: Ref | Commit) -> "zarr.Group":
        """The commit as a read-only Zarr group, to inspect it with Zarr's own tools."""
        import zarr

        commit = ref.commit if isinstance(ref, Ref) else ref
        path = self.path / commit_key(commit.name)
        kind = zarr.storage.ZipStore if is_packed(commit.name) else zarr.storage.LocalStore
        return zarr.open_group(kind(path, read_only=True), mode="r")


class ObjectStore(Store):
    """One session in object storage; `protocol.MemoryStore` documents the methods.

    Construct it with `create` or `open`. `commit` returns when the storage has acknowledged every
    object. There are no locks: of two concurrent writers, the later commit raises `Conflict`.
    Threads may share a store.

    URLs are `s3://bucket/prefix`, `gs://bucket/prefix` and `az://container/prefix`;
    `object_client.connect` documents the credentials.
    """

    @classmethod
    def create(
        cls,
        url: str,
        *,
        attributes: Mapping[str, JSON] | None = None,
        fingerprints: Mapping[str, str] | None = None,
    ) -> Self:
        """Create a session under a prefix without objects.

        Args:
            url: the bucket and the prefix.
            attributes: a description of the session; it never changes.
            fingerprints: of the weights, the tokenizer, …: the default of `commit`.

        Raises:
            ValueError: an unsupported URL.
            StoreError: the prefix holds objects, or the storage refuses.
        """
        backend = ObjectBackend.at(url)
        header = create_header(backend, attributes=attributes, fingerprints=fingerprints)
        return cls(backend, header)

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the session under a prefix.

        Raises:
            ValueError: an unsupported URL.
            NotFound: the prefix holds no session.
            Corrupt: `session.json` is damaged.
            UnsupportedSchema: a later version wrote the session.
            StoreError: the storage refuses.
        """
        backend = ObjectBackend.at(url)
        return cls(backend, read_header(backend))


class InMemoryStore(Store):
    """One session in a dict of file names and contents, as a folder would hold them.

    The dict is the session: `open` with the same dict returns another store of the same session,
    in any thread. The session ends with the process.
    """

    @classmethod
    def create(
        cls,
        files: Files | None = None,
        *,
        attributes: Mapping[str, JSON] | None = None,
        fingerprints: Mapping[str, str] | None = None,
    ) -> Self:
        """Create a session in an empty dict; None makes a new dict.

        Raises:
            StoreError: the dict is not empty.
        """
        backend = MemoryBackend({} if files is None else files)
        header = create_header(backend, attributes=attributes, fingerprints=fingerprints)
        return cls(backend, header)

    @classmethod
    def open(cls, files: Files) -> Self:
        """Open the session in a dict.

        Raises:
            NotFound: the dict holds no session.
            Corrupt: `session.json` is damaged.
            UnsupportedSchema: a later version wrote the session.
        """
        backend = MemoryBackend(files)
        return cls(backend, read_header(backend))
