"""A memory store in a folder of a local filesystem."""

import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from memory_store import history
from memory_store.commits import Commits
from memory_store.committing import commit_snapshot
from memory_store.errors import Corrupt, os_errors
from memory_store.files import sync_folder, write_new
from memory_store.header import Header, create_header, read_header
from memory_store.loading import load_snapshot
from memory_store.lock import WriterLock
from memory_store.names import branch_folder, commits_folder, refs_folder
from memory_store.protocol import JSON, Commit, MemoryStore, Ref, Snapshot, Verified
from memory_store.refs import Refs, missing
from memory_store.verify import verify

if TYPE_CHECKING:
    import zarr

Durability = Literal["full", "normal"]


class DirectoryStore:
    """One session in a folder; see `protocol.MemoryStore` for what it does.

    `create` and `open` make one. Opening writes nothing, so a session in a read-only folder can be
    listed, loaded and verified. A store may be shared by threads, and by processes that fork.

    Args:
        path: the session's folder.
        durability: "full" waits for the disk at each commit. "normal" does not: after a crash of
            the system (not of the process) the newest commits may be damaged, which is noticed, and
            older ones are still there.
    """

    def __init__(self, path: Path, header: Header, *, durability: Durability = "full") -> None:
        self.path = path
        self._header = header
        self._durable = _durable(durability)
        self._refs = Refs(path)
        self._commits = Commits(path, header.session)

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
            durability: see the class.

        Raises:
            StoreError: the folder holds something, or cannot be written to.
        """
        root, durable = Path(path).absolute(), _durable(durability)
        with os_errors("creating the session", root):
            header = create_header(
                root,
                attributes=attributes or {},
                fingerprints=fingerprints or {},
                durable=durable,
            )
        return cls(root, header, durability=durability)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, durability: Durability = "full") -> Self:
        """Open the session in a folder.

        Raises:
            NotFound: no session there.
            Corrupt: its description is damaged.
            UnsupportedSchema: a later version wrote it.
        """
        root = Path(path).absolute()
        header = read_header(root)
        for folder in (refs_folder(root), commits_folder(root)):
            if folder.is_symlink() or not folder.is_dir():
                raise Corrupt(f"{folder}: missing, or not a folder. Restore it from a copy.")
        return cls(root, header, durability=durability)

    @property
    def session(self) -> str:
        """The session's id, 32 hex digits."""
        return self._header.session

    @property
    def attributes(self) -> Mapping[str, JSON]:
        """What the creator wrote about the session."""
        return self._header.attributes

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """The fingerprints given at creation."""
        return self._header.fingerprints

    def branches(self) -> list[str]:
        """The branches that have a head, sorted."""
        return self._refs.branches()

    def head(self, branch: str) -> Ref | None:
        """The newest ref of a branch, or None."""
        return self._refs.head(branch)

    def refs(self, branch: str) -> list[Ref]:
        """The history of a branch, oldest first."""
        return self._refs.all(branch)

    def commit(
        self,
        snapshot: Snapshot,
        *,
        branch: str = "main",
        parent: Ref | None,
        fingerprints: Mapping[str, str] | None = None,
    ) -> Ref:
        """Write a snapshot and move the branch from `parent` to it; see `MemoryStore.commit`."""
        with os_errors("committing", self.path):
            return commit_snapshot(
                snapshot,
                self._commits,
                self._refs,
                branch=branch,
                parent=parent,
                fingerprints=self.fingerprints if fingerprints is None else fingerprints,
                durable=self._durable,
            )

    def load(
        self,
        ref: Ref | Commit,
        *,
        fingerprints: Mapping[str, str] | None = None,
        allow_mismatch: bool = False,
    ) -> Snapshot:
        """The snapshot at `ref`, bit for bit; see `MemoryStore.load`."""
        return load_snapshot(
            self._commits,
            _commit(ref),
            fingerprints=None if allow_mismatch else fingerprints,
        )

    def fingerprints_of(self, ref: Ref | Commit) -> Mapping[str, str]:
        """The fingerprints recorded with a commit."""
        return self._commits.read(_commit(ref)).fingerprints

    def publish(self, ref: Ref | Commit, *, branch: str) -> Ref:
        """Make the commit at `ref` the head of `branch`; see `MemoryStore.publish`."""
        commit = _commit(ref)
        self._commits.read(commit)
        head = self.head(branch)
        with os_errors("moving the branch", self.path):
            pending = self._refs.prepare(branch, head.seq + 1 if head else 0, commit)
            try:
                write_new(pending.temporary, [pending.data], durable=self._durable)
                return self._refs.publish(pending, durable=self._durable)
            finally:
                pending.temporary.unlink(missing_ok=True)

    def nearest(self, start: str | Ref | Commit, position: int) -> Commit:
        """The newest commit at or before `position` on the way to `start`."""
        if isinstance(start, str):
            head = self.head(start)
            if head is None:
                raise missing(self.path, start)
            start = head
        return history.nearest(_commit(start), position, self._commits)

    def tokens(self, ref: Ref | Commit, start: int, stop: int) -> np.ndarray:
        """The token ids at positions [start, stop) on the way to `ref`, int32."""
        return history.tokens(_commit(ref), start, stop, self._commits)

    def writer(self, branch: str = "main") -> WriterLock:
        """Hold the branch while writing; see `MemoryStore.writer`."""
        return WriterLock(branch_folder(self.path, branch))

    def verify(self, ref: Ref | Commit | None = None) -> Verified:
        """Read everything that `ref` (default: every ref) reaches, and check it all."""
        if ref is not None:
            return verify(self._commits, [_commit(ref)], refs=0)
        read_header(self.path)
        refs = [ref for branch in self.branches() for ref in self.refs(branch)]
        return verify(self._commits, [ref.commit for ref in refs], refs=len(refs))

    def group(self, ref: Ref | Commit) -> "zarr.Group":
        """The commit as a read-only Zarr group, for looking around with Zarr's own tools."""
        import zarr

        folder = self._commits.folder(_commit(ref))
        return zarr.open_group(zarr.storage.LocalStore(folder, read_only=True), mode="r")

    def size(self) -> int:
        """Bytes of all files of the session."""
        total = 0
        with os_errors("measuring", self.path):
            for folder, _, names in os.walk(self.path):
                for name in names:
                    try:
                        total += os.lstat(os.path.join(folder, name)).st_size
                    except FileNotFoundError:  # a temporary file that is gone again
                        continue
        return total

    def delete(self) -> None:
        """Remove the session with all its branches; see `MemoryStore.delete`."""
        with ExitStack() as stack, os_errors("deleting", self.path):
            for branch in self.branches():
                stack.enter_context(self.writer(branch))
            # One rename ends the session; what a crash leaves after it is no session any more.
            root = Path(os.path.realpath(self.path))
            grave = root.with_name(f".tmp-{uuid.uuid4().hex}")
            os.rename(root, grave)
            if self._durable:
                sync_folder(root.parent)
            shutil.rmtree(grave)


def _durable(durability: Durability) -> bool:
    if durability not in ("full", "normal"):
        raise ValueError(f"durability is 'full' or 'normal', not {durability!r}")
    return durability == "full"


def _commit(ref: Ref | Commit) -> Commit:
    return ref.commit if isinstance(ref, Ref) else ref


if TYPE_CHECKING:

    def _conforms(store: DirectoryStore) -> MemoryStore:
        return store
