"""Recovery: falls back to the newest snapshot of a branch that can be opened; reports the damage.

Nothing is deleted: unreadable refs move to `lost/`, and one more ref makes the snapshot the head.
Commits that no ref leads to are used first.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import count

from memory_store.backend import AlreadyExists, Backend
from memory_store.errors import Corrupt, NotFound, StoreError
from memory_store.format.header import Header, read_header, sealed_header
from memory_store.format.manifest import Manifest
from memory_store.format.manifest_reader import own_address, read_manifest
from memory_store.format.names import (
    BRANCH,
    COMMIT,
    COMMITS,
    LOST,
    REF_FILE,
    REFS,
    SESSION_FILE,
    branch_folder,
    ref_key,
)
from memory_store.history.pins import recover_pins
from memory_store.history.reading import Commits
from memory_store.history.refs import Refs
from memory_store.history.unreferenced import MAIN, bases, chain, complete, rivals, tips
from memory_store.types import Commit, Recovered, Ref
from memory_store.upkeep.taking_up import damage_of, take_up


def recover(commits: Commits, refs: Refs, branch: str) -> Recovered:
    """Make the newest snapshot of a branch that can be opened its head.

    Every damaged or missing ref is replaced by a ref to the commit that it led to, where that is
    known from its neighbours, or else to the commit of the ref before it: the history has no gaps.
    Commits after the last readable ref that no ref leads to are the newest of the branch. If there
    are several lines of them, or another branch is at the same commit, it is not plain whose they
    are: each line but the first becomes a branch of its own, or each.

    Raises:
        NotFound: the branch does not exist, or none of its snapshots can be opened; lists the
            damage.
    """
    backend = commits.backend
    numbers = sorted(
        int(match[1])
        for name in backend.files(branch_folder(branch))
        if (match := REF_FILE.fullmatch(name))
    )
    damage: list[str] = []
    readable = dict(_readable(refs, branch, numbers[-1], damage)) if numbers else {}
    cut_off = bool(numbers) and numbers[-1] not in readable
    lines, others = _lines(commits, refs, branch, readable, cut_off=cut_off)
    if not numbers and not lines:
        raise NotFound(f"{backend.name(branch_folder(branch))}: no branch here. See branches().")
    newest_first = [ref.commit for ref in readable.values()][::-1]
    line: list[Commit] = lines[0] if lines else []
    intact = _newest_intact(commits, [*line[::-1], *newest_first], damage)
    if intact is None:
        raise NotFound(
            f"{backend.name(branch_folder(branch))}: no snapshot of this branch can be loaded: "
            f"{' '.join(damage)} Restore the session from a copy."
        )
    line = line[: line.index(intact) + 1] if intact in line else []
    found = [f"{commits.name(commit)}: no ref led to it." for commit in line]
    places = _places(commits, {seq: ref.commit for seq, ref in readable.items()}, line, intact)
    for seq in range(_last(numbers) + 1):
        if seq not in readable:
            _replace(backend, refs, branch, seq, places(seq))
    for commit in line:
        head = refs.head(branch)
        if head is None or commits.manifest(head.commit).depth < commits.manifest(commit).depth:
            seq = head.seq + 1 if head is not None else 0
            created = commits.manifest(commit).created
            refs.publish(branch, seq, commit, through=backend, at=created)
    head = refs.head(branch)
    assert head is not None
    if head.commit != intact:
        head = refs.publish(branch, head.seq + 1, intact, through=backend)
    # A replaced ref may have led to a commit that continues the new head.
    for ref in take_up(commits, refs, branch).refs:
        found.append(f"{commits.name(ref.commit)}: no ref led to it.")
        head = ref
    found += _found_branches(commits, refs, [*lines[1:], *others])
    broken, pin_damage, pins_found = recover_pins(commits)
    for key in broken:
        _set_aside(backend, key, key.replace("/", "-").removesuffix(".json"))
    older = _damaged_tokens(commits, intact)
    return Recovered(head, (*damage, *older, *pin_damage), (*found, *pins_found))


def _last(numbers: list[int]) -> int:
    return numbers[-1] if numbers else -1


def _lines(
    commits: Commits, refs: Refs, branch: str, readable: dict[int, Ref], *, cut_off: bool
) -> tuple[list[list[Commit]], list[list[Commit]]]:
    """The lines of commits that no ref leads to: those of the branch, and others, newest first.

    Args:
        readable: the refs of the branch that can be read.
        cut_off: whether the newest ref of the branch is damaged.
    """
    last = readable[max(readable)] if readable else None
    histories = {name: [*refs.newest_first(name)] for name in refs.branches()}
    named = {ref.commit.name for history in histories.values() for ref in history}
    strays = complete(commits, commits.names() - named)
    based = bases(commits, strays, named)
    if last is not None:
        strays = [stray for stray in strays if based[stray] == last.commit]
    elif branch != MAIN:
        strays = []
    lines = []
    for tip in tips(commits, strays):
        with suppress(Corrupt):
            lines.append(chain(commits, tip, last.commit if last is not None else None))
    plain = cut_off or last is None or not rivals(refs, branch, last)
    return (lines, []) if plain else ([], lines)


def _places(
    commits: Commits, known: Mapping[int, Commit], line: list[Commit], intact: Commit
) -> Callable[[int], Commit]:
    """What each missing ref is replaced by: the commit that it led to, or the one before it."""
    filled: dict[int, Commit] = {}

    def place(seq: int) -> Commit:
        before = [each for each in known if each < seq]
        after = [each for each in known if each > seq]
        begin = max(before, default=-1)
        base = known[begin] if before else None
        if after:
            between = _between(commits, known[min(after)], base, min(after) - begin - 1)
        else:
            between = line
        filled.setdefault(begin, base or (between[0] if between else intact))
        index = min(seq - begin, len(between)) - 1
        return between[index] if index >= 0 else filled[begin]

    return place


def _between(commits: Commits, after: Commit, base: Commit | None, most: int) -> list[Commit]:
    """The ancestors of `after` down to `base`, oldest first; none if they are more than `most`."""
    path: list[Commit] = []
    with suppress(Corrupt):
        at = commits.manifest(after).parent
        while at != base:
            if at is None or len(path) == most:
                return []
            path.append(at)
            at = commits.manifest(at).parent
        return path[::-1]
    return []


def _found_branches(commits: Commits, refs: Refs, lines: list[list[Commit]]) -> list[str]:
    """Give each line of commits a branch of its own; returns a message for each."""
    found, taken = [], set(refs.branches())
    for line in lines:
        loadable = [each for each in line if damage_of(commits, each) is None]
        if loadable:
            name = next(
                each for n in count() if (each := f"found-{line[-1].position}-{n}") not in taken
            )
            taken.add(name)
            refs.publish(name, 0, loadable[-1], through=commits.backend)
            found.append(
                f"{commits.name(loadable[-1])}: no ref led to it; it is the branch {name!r} now."
            )
    return found


def _readable(refs: Refs, branch: str, last: int, damage: list[str]) -> Iterator[tuple[int, Ref]]:
    for seq in range(last + 1):
        try:
            yield seq, refs.read(branch, seq)
        except StoreError as error:
            damage.append(str(error))


def _newest_intact(
    commits: Commits, newest_first: list[Commit], damage: list[str]
) -> Commit | None:
    for commit in dict.fromkeys(newest_first):
        problem = damage_of(commits, commit)
        if problem is None:
            return commit
        if not isinstance(problem, NotFound):  # NotFound: deleted by gc, not damaged
            damage.append(str(problem))
    return None


def _damaged_tokens(commits: Commits, head: Commit) -> list[str]:
    """Messages about older token ids that are damaged: those positions cannot be rewound to."""
    found: list[str] = []
    at: Commit | None = head
    while at is not None:
        try:
            commits.token_ids(at)
        except NotFound:
            pass  # deleted by gc
        except StoreError as error:
            found.append(str(error))
        try:
            at = commits.manifest(at).parent
        except StoreError as error:
            if str(error) not in found:
                found.append(str(error))
            break
    return found


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

    If there are no refs, it is rewritten from the newest commit of all. The attributes of the
    session are lost; its id and its fingerprints are in every commit.

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
    for name in sorted(filter(COMMIT.fullmatch, backend.files(COMMITS)), reverse=True):
        with suppress(StoreError):
            return read_manifest(backend, own_address(backend, name), None)
    return None
