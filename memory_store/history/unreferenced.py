"""Commits that no ref leads to.

A commit is durable before its ref exists, and no ref is removed but with its whole branch, whose
own commits go first. So a complete commit that no ref names was never acknowledged, because its
writer was killed in between or lost a race; or its ref was acknowledged and has vanished since.
Files cannot tell which. They tell where the commit belongs: its *base* is its nearest ancestor that
a ref names.

- The base is the head of a branch: the commit continues the branch. It is evidence of lost refs.
- There is no branch "main": every commit is, as every session begins there.
- Some ancestor cannot be read: it may be evidence, and counts as such.
- The base is an older commit, or there is none: others went on without it. It is a leftover.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from memory_store.errors import Corrupt, StoreError, UnsupportedSchema
from memory_store.format.manifest_reader import own_address
from memory_store.format.names import COMMIT, COMMITS, commit_key, is_packed
from memory_store.format.packing import archive_size, read_document
from memory_store.history.reading import Commits
from memory_store.history.refs import Refs
from memory_store.types import Commit, Ref

MAX_REFS = 10_000  # refs that opening looks through; `verify`, `gc` and `recover` read all

MAIN = "main"
UNKNOWN = Commit("", "", 0)  # the base of a commit whose ancestors cannot be read


@dataclass(frozen=True)
class Unreferenced:
    """The complete commits that no ref names.

    Attributes:
        evidence: those that lost refs may have led to, in the order of their names.
        ancestors: names of those that a named commit descends from.
    """

    evidence: tuple[Commit, ...] = ()
    ancestors: frozenset[str] = frozenset()


def unreferenced(
    commits: Commits, histories: Mapping[str, Sequence[Ref]], listed: Iterable[str]
) -> Unreferenced:
    """The commits in `listed` that no ref names; reads more than names only if there are any.

    Args:
        commits: the stored commits.
        histories: branch → its refs, oldest first; read after `listed`.
        listed: names in the folder of commits.

    Raises:
        Corrupt: the record of a named commit is damaged.
    """
    named = {ref.commit.name: ref.commit for refs in histories.values() for ref in refs}
    strays = complete(commits, set(listed) - named.keys())
    if not strays:
        return Unreferenced()
    lowest = min(stray.position for stray in strays)
    later = [commit for commit in named.values() if commit.position >= lowest]
    parents = {commits.manifest(commit).parent for commit in later}
    ancestors: set[str] = set()
    for stray in sorted(strays, key=lambda stray: -commits.manifest(stray).depth):
        if stray in parents:
            ancestors.add(stray.name)
            parents.add(commits.manifest(stray).parent)
    heads = {refs[-1].commit for refs in histories.values() if refs} | {UNKNOWN}
    based = bases(commits, strays, named)
    evidence = [
        stray
        for stray, base in based.items()
        if stray.name not in ancestors and (base in heads or not histories.get(MAIN))
    ]
    return Unreferenced(tuple(evidence), frozenset(ancestors))


def complete(commits: Commits, names: Iterable[str]) -> list[Commit]:
    """The addresses of the commits among `names` that can be read, sorted by name."""
    found = []
    for name in sorted(filter(COMMIT.fullmatch, names)):
        with suppress(Corrupt, UnsupportedSchema):  # a write that was interrupted
            commit = own_address(commits.backend, name)
            manifest = commits.manifest(commit)
            # Its end, the archive's directory, may be missing though all arrays are there.
            if is_packed(name) and manifest.retained == "all":
                _, size = read_document(commits.backend, commit_key(name))
                if size != archive_size(manifest.data, manifest.arrays):
                    continue
            found.append(commit)
    return found


def bases(
    commits: Commits, strays: Iterable[Commit], named: Collection[str]
) -> dict[Commit, Commit | None]:
    """The nearest ancestor of each commit whose name is in `named`; None if it has none."""
    known: dict[Commit, Commit | None] = {}
    strays = list(strays)
    for stray in strays:
        path: list[Commit] = []
        at: Commit | None = stray
        while at is not None and at.name not in named and at not in known:
            path.append(at)
            try:
                at = commits.manifest(at).parent
            except (Corrupt, UnsupportedSchema):
                at = UNKNOWN
                break
        known |= dict.fromkeys(path, known.get(at, at) if at is not None else None)
    return {stray: known[stray] for stray in strays}


def continuing(commits: Commits, refs: Refs, branch: str) -> list[Commit]:
    """The evidence that `branch` once had a newer head, sorted by name.

    A branch without refs is continued by every commit that no ref names, if it is "main".
    """
    listed = commits.backend.files(COMMITS)  # first: refs published later must not be missed
    head = refs.head(branch)
    if head is None and branch != MAIN:
        return []
    lowest = head.position if head is not None else 0
    names = {name for name in listed if COMMIT.fullmatch(name) and int(name[:12]) >= lowest}
    named: set[str] = set() if head is None else {head.commit.name}
    for ref in islice(_newest_first(refs, branch), MAX_REFS):
        if not names - named:
            return []
        named.add(ref.commit.name)
    strays = complete(commits, names - named)
    wanted = None if head is None else head.commit
    based = bases(commits, strays, named)
    return [stray for stray, base in based.items() if wanted is None or base == wanted]


def _newest_first(refs: Refs, branch: str) -> Iterator[Ref]:
    """The readable refs of all branches, newest first, those of `branch` before others."""
    for each in sorted(refs.branches(), key=lambda name: (name != branch, name)):
        yield from refs.newest_first(each)


def tips(commits: Commits, strays: Iterable[Commit]) -> list[Commit]:
    """Those of some commits that none of the others continues, newest first."""
    strays = list(strays)
    parents = {commits.manifest(stray).parent for stray in strays}
    found = [stray for stray in strays if stray not in parents]
    return sorted(found, key=lambda tip: (commits.manifest(tip).created, tip.name), reverse=True)


def chain(commits: Commits, tip: Commit, base: Commit | None) -> list[Commit]:
    """The commits from after `base`, or from the first, to `tip`, oldest first.

    Raises:
        Corrupt: a commit between them cannot be read.
    """
    path: list[Commit] = []
    at: Commit | None = tip
    while at is not None and at != base:
        path.append(at)
        at = commits.manifest(at).parent
    return path[::-1]


def rivals(refs: Refs, branch: str, head: Ref | None) -> list[str]:
    """The other branches that the commits after `head` may belong to."""
    found = []
    for other in refs.branches():
        if other == branch:
            continue
        try:
            theirs = refs.head(other)
        except StoreError:
            found.append(other)
        else:
            if head is None or (theirs is not None and theirs.commit == head.commit):
                found.append(other)
    return found
