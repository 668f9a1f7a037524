"""Refs: small files, created once under the next free number, that say where a branch points.

Two writers that want the same number cannot both have it, because a hard link to an existing name
is refused by the filesystem. Where there are no hard links, a lock and a rename stand in.
"""

import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from memory_store.canonical import parse, sealed, unsealed
from memory_store.errors import Conflict, Corrupt, NotFound, StoreError, from_os, os_errors
from memory_store.fields import Fields, now
from memory_store.files import make_folder, read_document, sync_folder
from memory_store.manifest import SCHEMA
from memory_store.manifest_reader import check_schema, read_address
from memory_store.names import (
    BRANCH,
    MAX_NUMBER,
    REF_FILE,
    branch_folder,
    ref_file,
    refs_folder,
    temporary,
)
from memory_store.protocol import Commit, Ref

NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


@dataclass(frozen=True)
class Pending:
    """A ref that is complete on disk under a temporary name, but not published."""

    ref: Ref
    data: bytes
    temporary: Path
    target: Path


class Refs:
    """The refs of one session."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def branches(self) -> list[str]:
        """The branches that have a ref, sorted."""
        folder = refs_folder(self._root)
        with os_errors("listing", folder):
            names = [name for name in os.listdir(folder) if (folder / name).is_dir()]
        return sorted(name for name in names if BRANCH.fullmatch(name) and self._numbers(name))

    def head(self, branch: str) -> Ref | None:
        """The newest ref of `branch`, or None."""
        numbers = self._numbers(branch)
        return self.read(branch, numbers[-1]) if numbers else None

    def all(self, branch: str) -> list[Ref]:
        """The refs of `branch`, oldest first.

        Raises:
            Corrupt: one is damaged, or missing before others.
        """
        numbers = self._numbers(branch)
        for expected, number in enumerate(numbers):
            if number != expected:
                path = ref_file(branch_folder(self._root, branch), expected)
                raise Corrupt(f"{path}: missing. Restore the file from a copy.")
        return [self.read(branch, number) for number in numbers]

    def read(self, branch: str, seq: int) -> Ref:
        """Ref number `seq` of `branch`.

        Raises:
            Corrupt: damaged, or another ref under this name.
        """
        path = ref_file(branch_folder(self._root, branch), seq)
        document = parse(read_document(path), path)
        check_schema(document.get("schema"), path)
        fields = Fields(unsealed(document, path), path)
        if fields.text("branch", BRANCH) != branch or fields.integer("seq") != seq:
            raise Corrupt(f"{path}: the ref of another place. Restore the file from a copy.")
        return Ref(branch, seq, read_address(fields), fields.seconds("created"))

    def next_number(self, branch: str, parent: Ref | None) -> int:
        """The number of the ref that follows `parent`, which must be the head of `branch`.

        Raises:
            Conflict: it is not the head.
        """
        if parent is None:
            if head := self.head(branch):
                raise self._conflict(head, "nothing")
            return 0
        if parent.branch != branch:
            raise ValueError(
                f"parent is a ref of branch {parent.branch!r}, not of {branch!r}; "
                f"fork first: publish(parent, branch={branch!r})"
            )
        # Numbers have no gaps: if the next is free, the parent is the head.
        following = ref_file(branch_folder(self._root, branch), parent.seq + 1)
        if os.path.lexists(following) or self.read(branch, parent.seq) != parent:
            head = self.head(branch)
            assert head is not None
            raise self._conflict(head, f"ref {parent.seq}")
        return parent.seq + 1

    def prepare(self, branch: str, seq: int, commit: Commit) -> Pending:
        """A ref to be written to its temporary name, then published; makes the branch's folder.

        Raises:
            Corrupt: the branch's folder is a link.
        """
        if seq > MAX_NUMBER:
            raise ValueError(f"branch {branch!r} is full: a branch has {MAX_NUMBER} refs at most")
        folder = branch_folder(self._root, branch)
        make_folder(folder)
        ref = Ref(branch, seq, commit, now())
        data = sealed(
            {
                "schema": SCHEMA,
                "branch": branch,
                "seq": seq,
                "commit": commit.name,
                "id": commit.id,
                "position": commit.position,
                "created": ref.created,
            }
        )
        return Pending(ref, data, temporary(folder), ref_file(folder, seq))

    def publish(self, pending: Pending, *, durable: bool) -> Ref:
        """Move the branch. All that the ref leads to must be on disk before.

        Raises:
            Conflict: somebody else took the number.
        """
        folder = pending.target.parent
        if durable and pending.ref.seq == 0:
            # Who finds a ref goes on from it: by then the way to it is on disk, whoever made it.
            sync_folder(self._root)
            sync_folder(folder.parent)
        try:
            _create_only(pending.temporary, pending.target)
        except FileExistsError as error:
            head = self.head(pending.ref.branch)
            assert head is not None
            raise self._conflict(head, f"ref {pending.ref.seq - 1}") from error
        try:
            if durable:
                sync_folder(folder)
        except OSError as error:
            raise StoreError(
                f"{pending.target}: published, but the disk did not confirm it ({error.strerror}). "
                f"Check the disk, then see head({pending.ref.branch!r})."
            ) from error
        return pending.ref

    def is_published(self, pending: Pending) -> bool:
        """Whether the branch was moved, however the attempt ended; True where that is unknown."""
        try:
            return pending.target.read_bytes() == pending.data
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def _conflict(self, head: Ref, expected: str) -> Conflict:
        folder = branch_folder(self._root, head.branch)
        return Conflict(
            f"{folder}: branch {head.branch!r} is at ref {head.seq} ({head.position} tokens), not "
            f"at {expected}: another writer moved it. Load its head and go on from there, or fork "
            "with publish(…, branch=<a new name>)."
        )

    def _numbers(self, branch: str) -> list[int]:
        folder = branch_folder(self._root, branch)
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            # A branch that was never begun is not the same as a disk that is gone.
            if not os.path.lexists(folder.parent):
                raise Corrupt(f"{folder.parent}: missing. Restore it from a copy.") from None
            return []
        except OSError as error:
            raise from_os(error, "listing", folder) from error
        return sorted(int(match[1]) for name in names if (match := REF_FILE.fullmatch(name)))


def missing(root: Path, branch: str) -> NotFound:
    """The error for a branch that is not there."""
    return NotFound(f"{root}: there is no branch {branch!r} in this session. See branches().")


def _create_only(source: Path, target: Path) -> None:
    """Give `source` the name `target` and take its own away; FileExistsError if it is taken."""
    try:
        os.link(source, target)
    except FileExistsError:
        # A network filesystem may repeat a request whose answer was lost.
        if not os.path.samefile(source, target):
            raise
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        _locked_rename(source, target)
        return
    source.unlink(missing_ok=True)


def _locked_rename(source: Path, target: Path) -> None:
    """The same without hard links."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    lock = os.open(target.parent / ".publish", flags, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.rename(source, target)
    finally:
        os.close(lock)
