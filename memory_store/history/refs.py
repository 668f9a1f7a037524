"""Refs and pins: small create-only files that name commits.

A ref records, under the next free number, the commit that a branch points at. A pin protects a
commit from garbage collection. Creation is atomic on every backend, so two writers cannot both
create the ref of one number.
"""

from functools import lru_cache

from memory_store.backend import AlreadyExists, Backend, Draft, Extent, missing
from memory_store.errors import Conflict, Corrupt, NotFound, StoreError
from memory_store.format.json import Fields, now, parse, sealed, unsealed
from memory_store.format.manifest import SCHEMA
from memory_store.format.manifest_reader import check_schema, read_address
from memory_store.format.names import (
    BRANCH,
    MAX_NUMBER,
    PINS,
    REF_FILE,
    REFS,
    branch_folder,
    pin_key,
    ref_key,
)
from memory_store.types import Commit, Ref


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

    def publish(self, branch: str, seq: int, commit: Commit, *, through: Backend | Draft) -> Ref:
        """Move the branch to `commit`.

        Raises:
            Conflict: another writer published a ref of that number.
            ValueError: the branch has no free number.
        """
        if seq > MAX_NUMBER:
            raise ValueError(f"branch {branch!r} is full: a branch has {MAX_NUMBER} refs at most")
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
        try:
            through.publish(branch, seq, data)
        except AlreadyExists as error:
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


def all_pins(backend: Backend) -> dict[str, Commit]:
    """The pinned commits by the names of the pins, sorted.

    Raises:
        Corrupt: a pin is damaged.
    """
    names = [name.removesuffix(".json") for name in backend.files(PINS) if name.endswith(".json")]
    return {name: _read_pin(backend, name) for name in sorted(filter(BRANCH.fullmatch, names))}


def pinned(backend: Backend, name: str) -> Commit:
    """The commit that a pin protects.

    Raises:
        ValueError: not a valid pin name.
        NotFound: no pin has that name.
        Corrupt: the pin is damaged.
    """
    if not backend.exists(pin_key(name)):
        raise _no_pin(backend, name)
    return _read_pin(backend, name)


def add_pin(backend: Backend, name: str, commit: Commit) -> None:
    """Pin a commit.

    Raises:
        ValueError: not a valid pin name.
        StoreError: the name pins another commit.
    """
    document = {
        "schema": SCHEMA,
        "pin": name,
        "commit": commit.name,
        "id": commit.id,
        "position": commit.position,
        "created": now(),
    }
    try:
        backend.create(pin_key(name), sealed(document))
    except AlreadyExists:
        if _read_pin(backend, name) != commit:
            raise StoreError(
                f"{backend.name(pin_key(name))}: pins another commit. Unpin it, or use another "
                "name."
            ) from None


def remove_pin(backend: Backend, name: str) -> None:
    """Remove a pin; the commit stays until the next garbage collection.

    Raises:
        NotFound: no pin has that name.
    """
    key = pin_key(name)
    if not backend.exists(key):
        raise _no_pin(backend, name)
    backend.discard(key)


def _no_pin(backend: Backend, name: str) -> NotFound:
    return NotFound(f"{backend.name(pin_key(name))}: no such pin. See pins().")


def _read_pin(backend: Backend, name: str) -> Commit:
    path = backend.name(pin_key(name))
    document = parse(backend.read(pin_key(name)), path)
    check_schema(document.get("schema"), path)
    fields = Fields(unsealed(document, path), path)
    if fields.text("pin", BRANCH) != name:
        raise fields.corrupt("pin", "is another name")
    return read_address(fields)
