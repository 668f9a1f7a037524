"""Walking from a commit to its ancestors.

Each commit names its parent and one older ancestor, its jump. Jumps are chosen so that any of n
ancestors is reached in O(log n) steps (Myers, "An applicative random-access stack", 1983).
"""

import numpy as np

from memory_store.errors import Corrupt, NotFound
from memory_store.format.manifest import Manifest
from memory_store.format.names import COMMIT, TOKENS
from memory_store.history.reading import Commits
from memory_store.types import Commit


def jump_from(parent: Commit, commits: Commits) -> tuple[Commit, int]:
    """The jump of a child of `parent`: an ancestor and its depth."""
    manifest = commits.manifest(parent)
    if manifest.jump is None:
        return parent, manifest.depth
    jump, depth = manifest.jump
    try:
        further = commits.manifest(jump).jump
    except Corrupt:  # a damaged shortcut must not prevent a commit
        return parent, manifest.depth
    if further is not None and manifest.depth - depth == depth - further[1]:
        return further
    return parent, manifest.depth


def nearest(start: Commit, position: int, commits: Commits) -> Commit:
    """The newest loadable commit at or before `position` among `start` and its ancestors.

    Raises:
        NotFound: the history, or its loadable part, begins after `position`.
    """
    newest = ancestor(start, position, commits)
    if commits.is_loadable(newest):
        return newest
    # Names begin with the position, so the commits are sorted without reading them.
    for name in sorted(filter(COMMIT.fullmatch, commits.names()), reverse=True):
        if int(name[:12]) <= position:
            try:
                commit = ancestor(start, int(name[:12]), commits)
            except NotFound:
                break
            if commit.name == name and commits.is_loadable(commit):
                return commit
    raise NotFound(
        f"{commits.backend.name()}: no snapshot at or before {position} tokens is kept. "
        "Use a later position."
    )


def ancestor(start: Commit, position: int, commits: Commits) -> Commit:
    """The newest commit at or before `position` among `start` and its ancestors.

    Raises:
        NotFound: the history begins after `position`.
    """
    commit = start
    while commit.position > position:
        manifest = commits.manifest(commit)
        if manifest.parent is None or manifest.jump is None:
            raise NotFound(
                f"{commits.backend.name()}: no commit at or before {position} tokens: the first is "
                f"at {commit.position}. Use a later position."
            )
        jump = manifest.jump[0]
        commit = jump if jump.position > position else manifest.parent
    return commit


def tokens(ref: Commit, start: int, stop: int, commits: Commits) -> np.ndarray:
    """The token ids at positions [start, stop) of the stream that ends at `ref`, int32.

    Raises:
        ValueError: not 0 ≤ start ≤ stop ≤ the position of `ref`.
        NotFound: the log begins after `start`.
    """
    if not 0 <= start <= stop <= ref.position:
        raise ValueError(
            f"tokens [{start}, {stop}) of a commit that has read {ref.position}; allowed: "
            f"0 ≤ start ≤ stop ≤ {ref.position}"
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
                "Use a later start."
            )
        else:
            commit = _towards(low, manifest)
            manifest = commits.manifest(commit)
    return np.concatenate(parts[::-1]) if parts else np.zeros(0, np.int32)


def _towards(position: int, manifest: Manifest) -> Commit:
    """The jump if it has read at least `position` tokens, and the parent otherwise."""
    assert manifest.parent is not None
    if manifest.jump and manifest.jump[0].position >= position:
        return manifest.jump[0]
    return manifest.parent
