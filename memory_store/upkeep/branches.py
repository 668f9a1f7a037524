"""Deleting a branch, with the commits that no other branch has.

Its commits are removed first, newest first, and its refs last and at once. So no commit is ever
left without a ref, which would be evidence of lost refs (see `history.unreferenced`), and an
interrupted deletion can be repeated.
"""

from collections.abc import Mapping

from memory_store.format.names import branch_folder, commit_key, log_key, past_key, record_key
from memory_store.history.reading import Commits
from memory_store.history.refs import Refs, no_branch
from memory_store.history.unreferenced import MAIN, continuing
from memory_store.types import Commit


def delete_branch(commits: Commits, refs: Refs, branch: str, *, pins: Mapping[str, Commit]) -> int:
    """Delete a branch; see `MemoryStore.delete_branch`.

    Returns:
        The number of commits that were deleted with it.
    """
    if branch == MAIN:
        raise ValueError(f"branch {MAIN!r}; allowed: another branch, or the session as a whole")
    backend = commits.backend
    history = refs.all(branch)
    if not history:
        raise no_branch(backend.name(), branch)
    others = {
        ref.commit: other for other in refs.branches() if other != branch for ref in refs.all(other)
    }
    own = {ref.commit for ref in history} - others.keys()
    for name, commit in pins.items():
        if commit in own:
            raise ValueError(
                f"branch {branch!r}: pin {name!r} protects a snapshot of it; allowed: to unpin it, "
                "then to delete the branch"
            )
    _refuse_forks(commits, branch, own, others)
    if own:
        own |= set(continuing(commits, refs, branch))  # of a writer that was killed
    for commit in sorted(own, key=lambda each: (-each.position, each.name)):
        for key in (commit_key, log_key, record_key, past_key):
            backend.discard(key(commit.name))
    backend.discard(branch_folder(branch))
    return len(own)


def _refuse_forks(
    commits: Commits, branch: str, own: set[Commit], others: Mapping[Commit, str]
) -> None:
    """Raise ValueError if a commit of another branch descends from one of `own`."""
    lowest = min((commit.position for commit in own), default=0)
    for commit, other in others.items() if own else ():
        at: Commit | None = commit
        while at is not None and at.position >= lowest:
            if at in own:
                raise ValueError(
                    f"branch {branch!r}: branch {other!r} was forked from it; allowed: to delete "
                    "that one first"
                )
            at = commits.manifest(at).parent
            if at in others:
                break
