"""Taking up commits that no ref leads to; see `history.unreferenced`."""

from memory_store.errors import Corrupt, NotFound, StoreError
from memory_store.format.names import branch_folder
from memory_store.history import walk
from memory_store.history.loading import load_snapshot
from memory_store.history.reading import Commits
from memory_store.history.refs import Refs
from memory_store.history.unreferenced import chain, continuing, rivals, tips
from memory_store.types import Commit, Ref, TakenUp

RECENT = 4096  # tokens before a snapshot that a session may read when it is opened


def take_up(commits: Commits, refs: Refs, branch: str) -> TakenUp:
    """Publish the commits that continue the head of a branch, if it is plain that they do.

    It is if they form one line, and no other branch is at the same commit. Then a writer was killed
    between a commit and its ref, or refs were lost: either way the commits are those of the branch.

    The caller excludes commits that are being written.

    Raises:
        Corrupt: the branch "main" has no ref, and which commits are its own is not plain.
    """
    found = continuing(commits, refs, branch)
    if not found:
        return TakenUp()
    head = refs.head(branch)
    ends = tips(commits, found)
    taken: list[Ref] = []
    if len(ends) == 1 and not rivals(refs, branch, head):
        line = _openable(commits, ends[0], head.commit if head else None)
        for seq, commit in enumerate(line, head.seq + 1 if head else 0):
            created = commits.manifest(commit).created
            taken.append(refs.publish(branch, seq, commit, through=commits.backend, at=created))
    if head is None and not taken:
        raise Corrupt(
            f"{commits.backend.name(branch_folder(branch))}: no refs, but there are {len(found)} "
            "commits that no ref leads to. Use recover, which restores the refs."
        )
    published = {ref.commit for ref in taken}
    return TakenUp(tuple(taken), tuple(each for each in found if each not in published))


def _openable(commits: Commits, tip: Commit, base: Commit | None) -> list[Commit]:
    """The line of commits to the newest one that can be opened; none if it is broken."""
    try:
        line = chain(commits, tip, base)
    except Corrupt:
        return []
    while line and damage_of(commits, line[-1]) is not None:
        line.pop()
    return line


def damage_of(commits: Commits, commit: Commit) -> StoreError | None:
    """What prevents a session from being opened at a commit, or None.

    Opening needs the snapshot, and the ids of the newest tokens unless `gc` deleted them.

    Returns:
        `NotFound` if the snapshot was deleted by `gc`.
    """
    try:
        load_snapshot(commits, commit, fingerprints=None)
    except StoreError as error:
        return error
    try:
        walk.tokens(commit, max(0, commit.position - RECENT), commit.position, commits)
    except NotFound:  # deleted by gc, not damaged
        return None
    except StoreError as error:
        return error
    return None
