"""Recovery: falls back to the newest loadable snapshot of a branch, and reports the damage.

Nothing is deleted: unreadable refs move to `lost/`, and one more ref makes the snapshot the head.
"""

from collections.abc import Iterator
from contextlib import suppress
from itertools import count

from memory_store.backend import AlreadyExists, Backend
from memory_store.errors import Corrupt, NotFound, StoreError
from memory_store.format.header import Header, read_header, sealed_header
from memory_store.format.manifest import Manifest
from memory_store.format.manifest_reader import read_manifest
from memory_store.format.names import (
    BRANCH,
    LOST,
    REF_FILE,
    REFS,
    SESSION_FILE,
    branch_folder,
    ref_key,
)
from memory_store.history.loading import load_snapshot
from memory_store.history.reading import Commits
from memory_store.history.refs import Refs
from memory_store.types import Commit, Recovered, Ref


def recover(commits: Commits, refs: Refs, branch: str) -> Recovered:
    """Make the newest loadable snapshot of a branch its head.

    A snapshot is loadable if all its checksums match. Every damaged or missing ref is replaced by a
    ref to the commit of the ref before it, so that the history has no gaps.

    Raises:
        NotFound: the branch does not exist, or none of its snapshots can be loaded; lists the
            damage.
    """
    backend = commits.backend
    numbers = sorted(
        int(match[1])
        for name in backend.files(branch_folder(branch))
        if (match := REF_FILE.fullmatch(name))
    )
    if not numbers:
        raise NotFound(f"{backend.name(branch_folder(branch))}: no branch here. See branches().")
    damage: list[str] = []
    readable = dict(_readable(refs, branch, numbers[-1], damage))
    intact = _newest_intact(commits, list(readable.values())[::-1], damage)
    if intact is None:
        raise NotFound(
            f"{backend.name(branch_folder(branch))}: no snapshot of this branch can be loaded: "
            f"{' '.join(damage)} Restore the session from a copy."
        )
    previous = intact
    for seq in range(numbers[-1] + 1):
        if seq in readable:
            previous = readable[seq].commit
        else:
            _replace(backend, refs, branch, seq, previous)
    head = refs.head(branch)
    assert head is not None
    if head.commit != intact:
        head = refs.publish(branch, head.seq + 1, intact, through=backend)
    return Recovered(head, tuple(damage))


def _readable(refs: Refs, branch: str, last: int, damage: list[str]) -> Iterator[tuple[int, Ref]]:
    for seq in range(last + 1):
        try:
            yield seq, refs.read(branch, seq)
        except StoreError as error:
            damage.append(str(error))


def _newest_intact(commits: Commits, newest_first: list[Ref], damage: list[str]) -> Commit | None:
    tried: set[Commit] = set()
    for ref in newest_first:
        if ref.commit in tried:
            continue
        tried.add(ref.commit)
        try:
            load_snapshot(commits, ref.commit, fingerprints=None)
        except NotFound:
            continue  # deleted by gc, not damaged
        except StoreError as error:
            damage.append(str(error))
        else:
            return ref.commit
    return None


def _replace(backend: Backend, refs: Refs, branch: str, seq: int, commit: Commit) -> None:
    """Replace a damaged or missing ref by a ref to `commit`."""
    key = ref_key(branch, seq)
    if backend.exists(key):
        _set_aside(backend, key, f"{branch}-{seq:012d}")
    refs.publish(branch, seq, commit, through=backend)


def _set_aside(backend: Backend, key: str, name: str) -> None:
    try:
        data = backend.read(key)
    except StoreError:
        data = b""  # a folder, a link or too large a file
    for copy in count():
        with suppress(AlreadyExists):
            backend.create(f"{LOST}/{name}-{copy}.json", data)
            break
    backend.discard(key)


def recover_header(backend: Backend) -> str | None:
    """Rewrite a damaged or missing `session.json` from the newest commit of any branch.

    The attributes of the session are lost; its id and its fingerprints are in every commit.

    Returns:
        A description of the damage, or None if there was none.

    Raises:
        NotFound, Corrupt: the error of `header.read_header`, if no commit can be read either.
        UnsupportedSchema: a later version wrote the header.
    """
    try:
        read_header(backend)
    except (Corrupt, NotFound) as error:
        manifest = _any_manifest(backend)
        if manifest is None:
            raise
        header = Header(manifest.session, manifest.created, {}, manifest.fingerprints)
        if backend.exists(SESSION_FILE):
            _set_aside(backend, SESSION_FILE, "session")
        backend.create(SESSION_FILE, sealed_header(header))
        return str(error)
    return None


def _any_manifest(backend: Backend) -> Manifest | None:
    refs = Refs(backend)
    for branch in sorted(filter(BRANCH.fullmatch, backend.folders(REFS))):
        with suppress(StoreError):
            head = refs.head(branch)
            if head is not None:
                return read_manifest(backend, head.commit, None)
    return None
