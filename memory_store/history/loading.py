"""Loading a snapshot: its own arrays, and its windows from the commits that hold their slots."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from memory_store.errors import Corrupt, Mismatch, NotFound
from memory_store.format.header import checked_fingerprints
from memory_store.format.manifest import Manifest
from memory_store.format.names import TOKENS
from memory_store.format.zarr import ITEMSIZE, Stored
from memory_store.history.delta import assemble, pieces
from memory_store.history.reading import Commits
from memory_store.types import Commit, Snapshot, Window

THREADS = 2
WORTH_A_THREAD = 2**20  # bytes


def load_snapshot(
    commits: Commits, commit: Commit, *, fingerprints: Mapping[str, str] | None
) -> Snapshot:
    """The snapshot at `commit`, bit for bit as it was committed.

    Args:
        commits: reads it.
        commit: its address.
        fingerprints: must equal the recorded ones, name by name; None checks nothing.

    Raises:
        Mismatch: they differ.
        NotFound: its state was let go.
        Corrupt: a file is damaged, missing or not the one that was committed.
    """
    manifest = commits.read(commit)
    if manifest.left != "all":
        raise let_go(commits, commit)
    if fingerprints is not None:
        given = checked_fingerprints(fingerprints)
        _check_fingerprints(manifest.fingerprints, given, path=commits.name(commit))
    sources, path = manifest.sources(commit), commits.name(commit)

    def wanted() -> Iterator[tuple[Commit, Stored, str]]:
        for name, slots in manifest.slots.items():
            for piece in pieces(name, slots.start, slots.end, sources, path=path):
                yield piece.commit, piece.held.stored(slots), name
        for name, spec in manifest.arrays.items():
            if name not in manifest.slots:
                yield commit, spec, name

    try:
        return _assembled(commits, commit, manifest, wanted)
    except Corrupt:
        if commits.was_let_go(commit):  # kept for its slots alone
            raise let_go(commits, commit) from None
        raise


def let_go(commits: Commits, commit: Commit) -> NotFound:
    """The error for a commit whose state is not kept any more."""
    return NotFound(
        f"{commits.name(commit)}: the state at {commit.position} "
        "tokens was let go. Load nearest(…), and read the tokens since then again."
    )


def _assembled(
    commits: Commits,
    commit: Commit,
    manifest: Manifest,
    wanted: Callable[[], Iterable[tuple[Commit, Stored, str]]],
) -> Snapshot:
    sources = manifest.sources(commit)
    with commits.ahead(wanted) as reader, ThreadPoolExecutor(THREADS) as pool:

        def window(name: str) -> np.ndarray:
            return assemble(name, manifest.slots[name], sources, reader)

        # Side by side where one is large: to copy it leaves the interpreter to others.
        large = any(
            math.prod(slots.shape) * ITEMSIZE[slots.dtype] >= WORTH_A_THREAD
            for slots in manifest.slots.values()
        )
        found = (pool.map if large else map)(window, manifest.slots)
        windows = {
            name: Window(data, slots.axis, slots.end, slots.capacity)
            for (name, slots), data in zip(manifest.slots.items(), found, strict=True)
        }
        arrays = {
            name: reader.array(commit, spec, name)
            for name, spec in manifest.arrays.items()
            if name not in windows
        }
    tokens = arrays.pop(TOKENS)
    return Snapshot(manifest.position, windows, arrays, tokens, manifest.state)


def _check_fingerprints(
    recorded: Mapping[str, str], given: Mapping[str, str], *, path: object
) -> None:
    differing: dict[str, tuple[str | None, str | None]] = {
        name: (recorded.get(name), value)
        for name, value in given.items()
        if recorded.get(name) != value
    }
    if not differing:
        return
    parts = [
        f"{name} is {given}, but {recorded or 'nothing'} is recorded"
        for name, (recorded, given) in differing.items()
    ]
    raise Mismatch(
        f"{path}: made with something else: {'; '.join(parts)}. Load it with what made it, "
        "or pass allow_mismatch=True.",
        differing,
    )
