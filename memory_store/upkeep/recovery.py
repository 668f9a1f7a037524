"""Recovery: going back to the newest state that is sound, and saying what was lost.

Nothing is thrown away: refs that cannot be read are set aside in `lost/`, and the history goes on
with one ref more, which leads to the state that was found.
"""

from collections.abc import Iterator
from contextlib import suppress
from itertools import count

from memory_store.backend import Backend, Taken
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
    """Make the newest sound state of a branch its head.

    A state is sound if it can be loaded, checksums and all. Refs that are damaged or missing are
    replaced by others that lead where the one before them does, so that the history is whole.

    Raises:
        NotFound: the branch has no sound state at all; says what is wrong with each.
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
    sound = _newest_sound(commits, list(readable.values())[::-1], damage)
    if sound is None:
        raise NotFound(
            f"{backend.name(branch_folder(branch))}: no state of this branch is sound: "
            f"{' '.join(damage)} Restore the session from a copy."
        )
    previous = sound
    for seq in range(numbers[-1] + 1):
        if seq in readable:
            previous = readable[seq].commit
        else:
            _replace(backend, refs, branch, seq, previous)
    head = refs.head(branch)
    assert head is not None
    if head.commit != sound:
        head = refs.publish(branch, head.seq + 1, sound, through=backend)
    return Recovered(head, tuple(damage))


def _readable(refs: Refs, branch: str, last: int, damage: list[str]) -> Iterator[tuple[int, Ref]]:
    for seq in range(last + 1):
        try:
            yield seq, refs.read(branch, seq)
        except StoreError as error:
            damage.append(str(error))


def _newest_sound(commits: Commits, newest_first: list[Ref], damage: list[str]) -> Commit | None:
    tried: set[Commit] = set()
    for ref in newest_first:
        if ref.commit in tried:
            continue
        tried.add(ref.commit)
        try:
            load_snapshot(commits, ref.commit, fingerprints=None)
        except NotFound:
            continue  # let go on purpose
        except StoreError as error:
            damage.append(str(error))
        else:
            return ref.commit
    return None


def _replace(backend: Backend, refs: Refs, branch: str, seq: int, commit: Commit) -> None:
    """Put a ref to `commit` where there is a damaged one, or none."""
    key = ref_key(branch, seq)
    if backend.exists(key):
        _set_aside(backend, key, f"{branch}-{seq:012d}")
    refs.publish(branch, seq, commit, through=backend)


def _set_aside(backend: Backend, key: str, name: str) -> None:
    try:
        held = backend.read(key)
    except StoreError:
        held = b""  # a folder, a link, something huge: nothing to keep
    for copy in count():
        with suppress(Taken):
            backend.create(f"{LOST}/{name}-{copy}.json", held)
            break
    backend.discard(key)


def recover_header(backend: Backend) -> str | None:
    """Write `session.json` anew if it is damaged or gone, from the newest commit of some branch.

    What the creator wrote about the session is lost; its id and fingerprints are in every commit.

    Returns:
        What was wrong, None if nothing was.

    Raises:
        NotFound, Corrupt: as `header.read_header`, where no commit tells.
        UnsupportedSchema: a later version wrote it.
    """
    try:
        read_header(backend)
    except (Corrupt, NotFound) as error:
        known = _any_manifest(backend)
        if known is None:
            raise
        header = Header(known.session, known.created, {}, known.fingerprints)
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
