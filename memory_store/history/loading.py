"""Loading a snapshot: its own arrays, and its windows from the commits that hold the slots."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from memory_store.errors import Corrupt, Mismatch, NotFound
from memory_store.format.header import checked_fingerprints
from memory_store.format.manifest import Manifest
from memory_store.format.names import TOKENS
from memory_store.format.zarr import ITEMSIZE, StoredArray
from memory_store.history.delta import assemble, pieces
from memory_store.history.reading import Commits
from memory_store.types import Commit, Snapshot, Window

THREADS = 2
THREAD_THRESHOLD = 2**20  # bytes of a window; larger ones are loaded concurrently


def load_snapshot(
    commits: Commits, commit: Commit, *, fingerprints: Mapping[str, str] | None
) -> Snapshot:
    """The snapshot at `commit`, bit for bit as it was committed.

    Args:
        commits: the stored commits.
        commit: the address of the snapshot.
        fingerprints: must equal the recorded ones, name by name; None skips the check.

    Raises:
        Mismatch: fingerprints differ.
        NotFound: the snapshot was deleted by `gc`.
        Corrupt: a file is damaged, missing or not the one that was committed.
    """
    manifest = commits.read(commit)
    if manifest.retained != "all":
        raise snapshot_deleted(commits, commit)
    if fingerprints is not None:
        given = checked_fingerprints(fingerprints)
        _check_fingerprints(manifest.fingerprints, given, path=commits.name(commit))
    sources, path = manifest.sources(commit), commits.name(commit)

    def wanted() -> Iterator[tuple[Commit, StoredArray, str]]:
        for name, slots in manifest.slots.items():
            for piece in pieces(name, slots.start, slots.end, sources, path=path):
                yield piece.commit, piece.held.as_array(slots), name
        for name, spec in _small(manifest):
            yield commit, spec, name

    try:
        return _assembled(commits, commit, manifest, wanted)
    except Corrupt:
        if commits.was_deleted(commit):  # the commit exists only because others need its slots
            raise snapshot_deleted(commits, commit) from None
        raise


def snapshot_deleted(commits: Commits, commit: Commit) -> NotFound:
    """The error for a snapshot that `gc` deleted."""
    return NotFound(
        f"{commits.name(commit)}: the snapshot at {commit.position} tokens was deleted by gc. "
        "Load nearest(…), and read the tokens since then again."
    )


def _assembled(
    commits: Commits,
    commit: Commit,
    manifest: Manifest,
    wanted: Callable[[], Iterable[tuple[Commit, StoredArray, str]]],
) -> Snapshot:
    sources = manifest.sources(commit)
    with commits.prefetch(wanted) as reader, ThreadPoolExecutor(THREADS) as pool:

        def window(name: str) -> np.ndarray:
            return assemble(name, manifest.slots[name], sources, reader)

        # Concurrently if a window is large: copying it releases the interpreter's lock.
        large = any(
            math.prod(slots.shape) * ITEMSIZE[slots.dtype] >= THREAD_THRESHOLD
            for slots in manifest.slots.values()
        )
        loaded = (pool.map if large else map)(window, manifest.slots)
        windows = {
            name: Window(data, slots.axis, slots.end, slots.capacity)
            for (name, slots), data in zip(manifest.slots.items(), loaded, strict=True)
        }
        arrays = {name: reader.array(commit, spec, name) for name, spec in _small(manifest)}
    tokens = arrays.pop(TOKENS)
    return Snapshot(manifest.position, windows, arrays, tokens, manifest.state)


def _small(manifest: Manifest) -> Iterator[tuple[str, StoredArray]]:
    """The arrays that are loaded whole: all but windows and rows of logs."""
    for name, spec in manifest.arrays.items():
        if name not in manifest.slots and name not in manifest.logs:
            yield name, spec


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
        f"{path}: other fingerprints: {'; '.join(parts)}. Load the session with what wrote it, or "
        "pass allow_mismatch=True.",
        differing,
    )
