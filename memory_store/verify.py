"""Reading everything that refs reach, and checking it all."""

from collections.abc import Iterable

from memory_store.arrays import check_sha256
from memory_store.canonical import parse
from memory_store.commits import Commits, Scratch, array_folder
from memory_store.delta import pieces
from memory_store.errors import Corrupt
from memory_store.manifest import Manifest, Slots
from memory_store.names import TOKENS, commit_folder, log_folder
from memory_store.protocol import Commit, Verified
from memory_store.zarrformat import array_document


def verify(commits: Commits, starts: Iterable[Commit], *, refs: int) -> Verified:
    """Check the commits at `starts` and all those behind them.

    For each: its id, and that of every commit it names; that the commits of its window hold all its
    slots; every chunk's crc32c and every array's sha256; the Zarr documents.

    Args:
        commits: reads them.
        starts: where to begin.
        refs: how many refs were checked before, for the report.

    Raises:
        Corrupt: names the first file that is not as it was written.
    """
    seen: dict[Commit, Manifest] = {}
    waiting, scratch, size = list(starts), Scratch(), 0
    while waiting:
        commit = waiting.pop()
        if commit in seen:
            continue
        manifest = commits.read(commit)
        seen[commit] = manifest
        if manifest.left == "all":
            size += _check_arrays(commit, manifest, commits, scratch)
        elif manifest.left == "log":
            ids = commits.token_ids(commit)
            check_sha256(
                commits.backend.name(log_folder(commit.name)), manifest.arrays[TOKENS], ids
            )
            size += ids.nbytes
        waiting += [*filter(None, [manifest.parent, manifest.jump and manifest.jump[0]])]
        waiting += [source.commit for source in manifest.window]
    for commit, manifest in seen.items():
        _check_links(commit, manifest, seen, commits)
    return Verified(refs, len(seen), size)


def _check_arrays(commit: Commit, manifest: Manifest, commits: Commits, scratch: Scratch) -> int:
    """Returns the bytes of the commit's arrays."""
    backend = commits.backend
    for name, spec in manifest.arrays.items():
        folder = array_folder(commit, name)
        key = f"{folder}/zarr.json"
        path = backend.name(key)
        if parse(backend.read(key), path) != array_document(spec.shape, spec.dtype):
            raise Corrupt(f"{path}: does not fit the array. Restore the file from a copy.")
        array = commits.array(commit, spec, name, allocate=scratch.take)
        check_sha256(backend.name(folder), spec, array)
    return sum(spec.nbytes for spec in manifest.arrays.values())


def _check_links(
    commit: Commit, manifest: Manifest, seen: dict[Commit, Manifest], commits: Commits
) -> None:
    path = commits.backend.name(f"{commit_folder(commit.name)}/zarr.json")
    for back, depth in ((manifest.parent, manifest.depth - 1), manifest.jump or (None, 0)):
        if back and seen[back].depth != depth:
            raise Corrupt(f"{path}: names a commit of another depth. Restore it from a copy.")
    for source in manifest.window:
        for name, held in source.held.items():
            other = seen[source.commit]
            slots = other.slots.get(name)
            if (
                slots is None
                or other.held(name) != held
                or _slot(slots) != _slot(manifest.slots[name])
            ):
                raise Corrupt(
                    f"{path}: takes slots of window {name!r} from {source.commit.name}, which does "
                    "not hold them. Restore it from a copy."
                )
    for name, slots in manifest.slots.items():
        for _ in pieces(name, slots.start, slots.end, manifest.sources(commit), path=path):
            pass  # raises where slots are missing


def _slot(slots: Slots) -> tuple[int, str, tuple[int, ...]]:
    """What one slot of a window is: equal in all the commits that a window comes from."""
    return slots.axis, slots.dtype, slots.shape[: slots.axis] + slots.shape[slots.axis + 1 :]
