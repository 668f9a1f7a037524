"""Refs: small create-only files that name commits.

A ref records, under the next free number, the commit that a branch points at. Creation is atomic on
every backend, so two writers cannot both create the ref of one number.
"""

from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache

from memory_store.backend import AlreadyExists, Backend, Draft, Extent, missing
from memory_store.errors import Conflict, Corrupt, NotFound, UnsupportedSchema
from memory_store.format.json import Fields, now, parse, sealed, unsealed
from memory_store.format.manifest import SCHEMA
from memory_store.format.manifest_reader import check_schema, read_address
from memory_store.format.names import (
    BRANCH,
    MAX_NUMBER,
    REF_FILE,
    REFS,
    branch_folder,
    ref_key,
)
from memory_store.types import Commit, Ref

BATCH = 64  # refs that are read ahead


class Refs:
    """The refs of one session."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._newest: tuple[Ref, object] | None = None  # last published here, with its stamp

    def branches(self) -> list[str]:
        """The branches that have a ref, sorted."""
        names = self._backend.folders(REFS)
        return sorted(name for name in names if BRANCH.fullmatch(name) and self._numbers(name))

    def head(self, branch: str) -> Ref | None:
        """The newest ref of `branch`, or None."""
        numbers = self._numbers(branch)
        return self.read(branch, numbers[-1]) if numbers else None

    def all(self, branch: str) -> list[Ref]:
        """The refs of `branch`, oldest first.

        Raises:
            Corrupt: a ref is damaged, or missing before a later one.
        """
        numbers = self._numbers(branch)
        for expected, number in enumerate(numbers):
            if number != expected:
                raise missing(self._backend.name(ref_key(branch, expected)))
        wanted = [Extent(ref_key(branch, number), 0, None, whole=True) for number in numbers]
        with self._backend.prefetch(lambda: wanted) as backend:
            return [_read(backend, branch, number) for number in numbers]

    def newest_first(self, branch: str) -> Iterator[Ref]:
        """The refs of `branch` that can be read, newest first; gaps are not noticed."""
        numbers = self._numbers(branch)[::-1]
        for at in range(0, len(numbers), BATCH):
            batch = numbers[at : at + BATCH]
            wanted = [Extent(ref_key(branch, number), 0, None, whole=True) for number in batch]
            with self._backend.prefetch(lambda wanted=wanted: wanted) as backend:  # type: ignore[misc]
                for number in batch:
                    with suppress(Corrupt, UnsupportedSchema):
                        yield _read(backend, branch, number)

    def read(self, branch: str, seq: int) -> Ref:
        """Ref number `seq` of `branch`.

        Raises:
            Corrupt: the ref is damaged, or it is that of another branch or number.
        """
        return _read(self._backend, branch, seq)

    def next_number(self, branch: str, parent: Ref | None) -> int:
        """The number of the ref that follows `parent`, the expected head of `branch`.

        Raises:
            Conflict: `parent` is not the head.
            ValueError: `parent` is a ref of another branch.
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
        # Numbers have no gaps: if the next one is free, the parent is the head.
        taken = self._backend.exists(ref_key(branch, parent.seq + 1))
        if taken or not self._exists(parent):
            head = self.head(branch)
            assert head is not None
            raise self._conflict(head, f"ref {parent.seq}")
        return parent.seq + 1

    def _exists(self, ref: Ref) -> bool:
        if not self._backend.remote:  # a remote stamp does not reveal a missing file
            stamp = self._backend.stamp(ref_key(ref.branch, ref.seq))
            if stamp is not None and (ref, stamp) == self._newest:
                return True
        return self.read(ref.branch, ref.seq) == ref

    def publish(
        self,
        branch: str,
        seq: int,
        commit: Commit,
        *,
        through: Backend | Draft,
        at: float | None = None,
    ) -> Ref:
        """Move the branch to `commit`.

        Args:
            branch, seq, commit: the content of the ref.
            through: what creates the file.
            at: when the branch was moved, in seconds since 1970; None for now.

        Raises:
            Conflict: another writer published a ref of that number to another commit.
            ValueError: the branch has no free number.
        """
        if seq > MAX_NUMBER:
            raise ValueError(f"branch {branch!r} is full: a branch has {MAX_NUMBER} refs at most")
        ref = Ref(branch, seq, commit, now() if at is None else at)
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
        try:
            through.publish(branch, seq, data)
        except AlreadyExists as error:
            # Another process may have taken the commit up; then it is published.
            ref = self.read(branch, seq)
            if ref.commit != commit:
                head = self.head(branch)
                assert head is not None
                raise self._conflict(head, f"ref {seq - 1}") from error
        self._newest = ref, self._backend.stamp(ref_key(branch, seq))
        return ref

    def _conflict(self, head: Ref, expected: str) -> Conflict:
        folder = self._backend.name(branch_folder(head.branch))
        return Conflict(
            f"{folder}: branch {head.branch!r} is at ref {head.seq} ({head.position} tokens), not "
            f"at {expected}: another writer moved it. Load its head and continue from there, or "
            "fork with publish(…, branch=<a new name>)."
        )

    def _numbers(self, branch: str) -> list[int]:
        names = self._backend.files(branch_folder(branch))
        return sorted(int(match[1]) for name in names if (match := REF_FILE.fullmatch(name)))


def _read(backend: Backend, branch: str, seq: int) -> Ref:
    key = ref_key(branch, seq)
    return _parsed(backend.read(key), backend.name(key), branch, seq)


@lru_cache(maxsize=4096)  # histories are read repeatedly
def _parsed(data: bytes, path: str, branch: str, seq: int) -> Ref:
    document = parse(data, path)
    check_schema(document.get("schema"), path)
    fields = Fields(unsealed(document, path), path)
    if fields.text("branch", BRANCH) != branch or fields.integer("seq") != seq:
        raise Corrupt(f"{path}: a ref of another branch or number. Restore the file from a copy.")
    return Ref(branch, seq, read_address(fields), fields.seconds("created"))


def no_branch(place: object, branch: str) -> NotFound:
    """The error for a branch that does not exist."""
    return NotFound(f"{place}: no branch {branch!r} in this session. See branches().")
