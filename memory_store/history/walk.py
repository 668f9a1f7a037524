"""Walking back from a commit to the ones it came from.

Besides its parent, each commit names one commit further back, chosen so that any ancestor among n
commits is reached in O(log n) steps (Myers, "An applicative random-access stack", 1983).
"""

import numpy as np

from memory_store.errors import Corrupt, NotFound
from memory_store.format.manifest import Manifest
from memory_store.format.names import COMMIT, TOKENS
from memory_store.history.reading import Commits
from memory_store.types import Commit


def jump_from(parent: Commit, commits: Commits) -> tuple[Commit, int]:
    """The commit further back that a child of `parent` names, and its depth."""
    manifest = commits.manifest(parent)
    if manifest.jump is None:
        return parent, manifest.depth
    jump, depth = manifest.jump
    try:
        further = commits.manifest(jump).jump
    except Corrupt:  # a shortcut is not worth losing a commit for
        return parent, manifest.depth
    if further is not None and manifest.depth - depth == depth - further[1]:
        return further
    return parent, manifest.depth


def nearest(start: Commit, position: int, commits: Commits) -> Commit:
    """The newest commit at or before `position` on the way to `start` whose state is kept.

    Raises:
        NotFound: the history, or what is kept of it, begins after `position`.
    """
    found = ancestor(start, position, commits)
    if commits.is_whole(found):
        return found
    # Names begin with positions, so the kept ones need not be read to be tried newest first.
    for name in sorted(filter(COMMIT.fullmatch, commits.names()), reverse=True):
        if int(name[:12]) <= position:
            try:
                commit = ancestor(start, int(name[:12]), commits)
            except NotFound:
                break
            if commit.name == name and commits.is_whole(commit):
                return commit
    raise NotFound(
        f"{commits.backend.name()}: no snapshot at or before {position} tokens is kept. "
        "Ask for a later position."
    )


def ancestor(start: Commit, position: int, commits: Commits) -> Commit:
    """The newest commit at or before `position` on the way to `start`.

    Raises:
        NotFound: the history begins after `position`.
    """
    commit = start
    while commit.position > position:
        manifest = commits.manifest(commit)
        if manifest.parent is None or manifest.jump is None:
            raise NotFound(
                f"{commits.backend.name()}: no commit at or before {position} tokens: the first is "
                f"at {commit.position}. Ask for a later position."
            )
        jump = manifest.jump[0]
        commit = jump if jump.position > position else manifest.parent
    return commit


def tokens(ref: Commit, start: int, stop: int, commits: Commits) -> np.ndarray:
    """The token ids at positions [start, stop) on the way to `ref`, int32.

    Raises:
        ValueError: not 0 ≤ start ≤ stop ≤ the position of `ref`.
        NotFound: the log begins after `start`.
    """
    if not 0 <= start <= stop <= ref.position:
        raise ValueError(
            f"tokens [{start}, {stop}) were asked of a commit that has read {ref.position}; "
            "give 0 ≤ start ≤ stop ≤ that"
        )
    commit, manifest, parts = ref, commits.manifest(ref), []
    low = stop
    while low > start:
        begin = manifest.position - manifest.arrays[TOKENS].shape[0]
        if begin < low:
            ids = commits.token_ids(commit)
            parts.append(ids[max(start, begin) - begin : low - begin])
            low = max(start, begin)
        elif manifest.parent is None:
            raise NotFound(
                f"{commits.backend.name()}: the token log begins at {begin}, after {start}. "
                "Ask for later tokens."
            )
        else:
            commit = _towards(low, manifest)
            manifest = commits.manifest(commit)
    return np.concatenate(parts[::-1]) if parts else np.zeros(0, np.int32)


def _towards(position: int, manifest: Manifest) -> Commit:
    """The furthest commit named by `manifest` that has still read `position` tokens."""
    assert manifest.parent is not None
    if manifest.jump and manifest.jump[0].position >= position:
        return manifest.jump[0]
    return manifest.parent
