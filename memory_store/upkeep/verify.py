"""Verification: reads and checks everything that is reachable from refs."""

from collections.abc import Iterable, Mapping

import numpy as np

from memory_store.backend import Backend, Extent
from memory_store.errors import Corrupt
from memory_store.format.chunks import check_sha256, chunk_bytes, chunks, read_array
from memory_store.format.json import parse
from memory_store.format.manifest import Manifest, WindowSpec, record
from memory_store.format.names import RECORD, commit_key, document_key, is_packed, log_key
from memory_store.format.packing import DOCUMENT, documents, laid_out, read_part
from memory_store.format.zarr import ArraySpec, array_document
from memory_store.format.zip import Member, crc32_of, directory, header
from memory_store.history.delta import pieces
from memory_store.history.reading import Commits, Scratch, array_folder
from memory_store.types import Commit, Verified


def verify(commits: Commits, starts: Iterable[Commit], *, refs: int) -> Verified:
    """Check the commits at `starts` and all their ancestors.

    The checks of each commit: its id and the id of every commit it names; the slots in the commits
    of its window; the crc32c of every chunk and the sha256 of every array; the Zarr documents.

    Args:
        commits: the stored commits.
        starts: the commits to begin with.
        refs: number of refs that the caller has checked, for the report.

    Raises:
        Corrupt: names the first file that differs from what was written.
    """
    seen: dict[Commit, Manifest] = {}
    waiting, scratch, size = list(starts), Scratch(), 0
    while waiting:
        commit = waiting.pop()
        if commit in seen:
            continue
        manifest = commits.read(commit)
        seen[commit] = manifest
        if manifest.retained == "all":
            size += _check_arrays(commit, manifest, commits, scratch)
        elif manifest.retained == "log":
            size += _check_log(commit, manifest, commits, scratch)
        waiting += [*filter(None, [manifest.parent, manifest.jump and manifest.jump[0]])]
        waiting += [source.commit for source in manifest.window]
    for commit, manifest in seen.items():
        _check_links(commit, manifest, seen, commits)
    return Verified(refs, len(seen), size)


def _check_arrays(commit: Commit, manifest: Manifest, commits: Commits, scratch: Scratch) -> int:
    """Check the arrays of a commit; returns their size in bytes."""
    listed: list[Member] = []
    for name, spec in sorted(manifest.arrays.items()):
        array = commits.array(commit, spec, name, allocate=scratch.take)
        check_sha256(commits.backend, array_folder(commit, name), spec, array)
        if is_packed(commit.name):
            listed += _members(name, spec, array)
        else:
            _check_document(commits.backend, f"{array_folder(commit, name)}/zarr.json", spec)
    if is_packed(commit.name):
        small = {DOCUMENT: manifest.data}
        small |= {name: b"".join(parts) for name, parts in documents(manifest.arrays).items()}
        _check_archive(commits.backend, commit_key(commit.name), small, listed)
    return sum(spec.nbytes for spec in manifest.arrays.values())


def _check_document(backend: Backend, key: str, spec: ArraySpec) -> None:
    path = backend.name(key)
    if parse(backend.read(key), path) != array_document(spec.shape, spec.dtype):
        raise Corrupt(f"{path}: does not match the array. Restore the file from a copy.")


def _check_log(commit: Commit, manifest: Manifest, commits: Commits, scratch: Scratch) -> int:
    """Check what remains of a deleted snapshot; returns the size of its arrays in bytes."""
    backend, key, listed = commits.backend, log_key(commit.name), list[Member]()
    for name in sorted(manifest.logged):
        folder, spec = commits.in_log(commit, name)
        array = read_array(backend, folder, spec, scratch.take)
        check_sha256(backend, folder, spec, array)
        listed += _members(name, spec, array)
    if is_packed(commit.name):
        _check_archive(backend, key, {RECORD: record(manifest)}, listed)
    return sum(spec.nbytes for spec in manifest.logged.values())


def _members(name: str, spec: ArraySpec, array: np.ndarray) -> list[Member]:
    """The chunks of an array as members of an archive."""
    size = chunk_bytes(spec)
    return [
        Member(f"{name}/{chunk.name}", size, crc32_of(chunk.buffers))
        for chunk in chunks(array, spec.limit)
    ]


def _check_archive(
    backend: Backend, key: str, small: Mapping[str, bytes], arrays: Iterable[Member]
) -> None:
    """Check an archive except the content of `arrays`: headers, documents `small`, directory.

    The first of `small` comes before the arrays, the others after them.
    """
    first, *others = (Member(name, len(data), crc32_of([data])) for name, data in small.items())
    listed, end = laid_out([first, *arrays, *others])
    for member, at in listed:
        due = header(member) + small.get(member.name, b"")
        if read_part(backend, Extent(key, at, len(due))) != due:
            raise _damaged(backend, key, member.name)
    due = directory(listed, end)
    if read_part(backend, Extent(key, end, len(due), whole=True)) != due:
        raise _damaged(backend, key, "its directory")


def _damaged(backend: Backend, key: str, what: str) -> Corrupt:
    return Corrupt(f"{backend.name(key)}: {what}: damaged. Restore the file from a copy.")


def _check_links(
    commit: Commit, manifest: Manifest, seen: dict[Commit, Manifest], commits: Commits
) -> None:
    path = commits.backend.name(document_key(commit.name))
    for back, depth in ((manifest.parent, manifest.depth - 1), manifest.jump or (None, 0)):
        if back and seen[back].depth != depth:
            raise Corrupt(f"{path}: names a commit with another depth. Restore it from a copy.")
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
                    f"{path}: names {source.commit.name} for slots of window {name!r}, which it "
                    "does not hold. Restore it from a copy."
                )
    for name, slots in manifest.slots.items():
        for _ in pieces(name, slots.start, slots.end, manifest.sources(commit), path=path):
            pass  # raises if slots are missing


def _slot(slots: WindowSpec) -> tuple[int, str, tuple[int, ...]]:
    """Axis, dtype and shape of one slot; equal in all commits that hold slots of one window."""
    return slots.axis, slots.dtype, slots.shape[: slots.axis] + slots.shape[slots.axis + 1 :]
