"""Writing a commit: what is new in a snapshot, and all of it on the medium before its ref is."""

import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from memory_store.backend import MAX_DOCUMENT, Backend, Buffer
from memory_store.format.chunks import chunks, digest
from memory_store.format.header import checked_fingerprints
from memory_store.format.json import now
from memory_store.format.manifest import Manifest, Slots
from memory_store.format.names import TOKENS, commit_key, new_commit_name
from memory_store.format.packing import DOCUMENT, documents, packed, placed
from memory_store.format.zarr import ArraySpec, dtype_name
from memory_store.format.zip import crc32_of
from memory_store.history.checksums import Kept
from memory_store.history.delta import Differs, Plan, confirm, from_slot, plan
from memory_store.history.reading import Commits
from memory_store.history.refs import Refs
from memory_store.history.validation import checked
from memory_store.history.walk import jump_from
from memory_store.types import Commit, Ref, Snapshot, Window

LIBRARIES = {"python": sys.version.split()[0], "numpy": np.__version__}
WORTH_A_THREAD = 2**20  # bytes


def commit_snapshot(
    snapshot: Snapshot,
    commits: Commits,
    refs: Refs,
    *,
    branch: str,
    parent: Ref | None,
    fingerprints: Mapping[str, str],
) -> Ref:
    """Write a snapshot and move the branch from `parent` to it; see `MemoryStore.commit`."""
    snapshot = checked(snapshot, parent.position if parent else None)
    recorded = checked_fingerprints(fingerprints)
    seq = refs.next_number(branch, parent)
    before = parent.commit if parent else None
    depth = commits.manifest(before).depth + 1 if before else 0
    jump = jump_from(before, commits) if before else None
    anew: frozenset[str] = frozenset()
    while True:
        todo = plan(snapshot.windows, before, commits, anew)

        def describe(specs: Mapping[str, ArraySpec], todo: Plan = todo) -> Manifest:
            return Manifest(
                session=commits.session,
                created=now(),
                position=snapshot.position,
                depth=depth,
                parent=before,
                jump=jump,
                window=todo.window,
                slots={name: _slots(window) for name, window in snapshot.windows.items()},
                arrays=specs,
                state=snapshot.attributes,
                fingerprints=recorded,
                libraries=LIBRARIES,
            )

        new = {name: from_slot(each, todo.first[name]) for name, each in snapshot.windows.items()}
        try:
            with commits.scratch() as scratch:
                ref, manifest, kept = write_commit(
                    commits.backend,
                    {**scratch.gathered(new), **snapshot.arrays, TOKENS: snapshot.tokens},
                    describe,
                    refs,
                    confirm=partial(confirm, todo, snapshot.windows, commits),
                    branch=branch,
                    seq=seq,
                    position=snapshot.position,
                )
        except Differs as found:
            anew |= found.windows
            continue
        commits.remember(ref.commit, manifest, kept)
        return ref


def _slots(window: Window) -> Slots:
    data = window.data
    return Slots(data.shape, dtype_name(data.dtype), window.axis, window.end, window.capacity)


@dataclass(frozen=True)
class Part:
    """An array ready to be written.

    Attributes:
        spec: what the attributes will say of it.
        chunks: by the names of the archive's members.
        crc32: of each member.
    """

    spec: ArraySpec
    chunks: Mapping[str, list[Buffer]]
    crc32: Mapping[str, int]


def parts(arrays: Mapping[str, np.ndarray]) -> dict[str, Part]:
    """All arrays, by name, sorted."""
    # sha256 takes longest, and leaves the interpreter to others: a thread begins with the largest
    # arrays, and this one takes those that are left once it has all other checksums.
    large = [name for name, array in arrays.items() if array.nbytes >= WORTH_A_THREAD]
    large.sort(key=lambda name: -arrays[name].nbytes)
    with ThreadPoolExecutor(1) if large else nullcontext() as pool:
        begun = {name: pool.submit(digest, arrays[name]) for name in large if pool}

        def sha256(name: str) -> str:
            there = begun.get(name)
            return there.result() if there and not there.cancel() else digest(arrays[name])

        found = {name: _checked(name, array) for name, array in sorted(arrays.items())}
        return {name: make(sha256(name)) for name, make in found.items()}


def _checked(name: str, array: np.ndarray) -> Callable[[str], Part]:
    """An array with all of its checksums but the sha256, with which the part is made."""
    found = {f"{name}/{chunk.name}": chunk for chunk in chunks(array)}
    crc32 = {member: crc32_of(chunk.buffers) for member, chunk in found.items()}
    crcs = tuple(chunk.crc32c for chunk in found.values())
    return lambda sha256: Part(
        ArraySpec(array.shape, dtype_name(array.dtype), crcs, sha256),
        {member: chunk.buffers for member, chunk in found.items()},
        crc32,
    )


def write_commit(
    backend: Backend,
    arrays: Mapping[str, np.ndarray],
    describe: Callable[[Mapping[str, ArraySpec]], Manifest],
    refs: Refs,
    *,
    confirm: Callable[[], Kept],
    branch: str,
    seq: int,
    position: int,
) -> tuple[Ref, Manifest, Kept]:
    """Write arrays and attributes as a new commit, and publish it.

    On any error the session is as it was, unless the ref got through: then the commit stays.

    Args:
        backend: where to.
        arrays: what the commit itself holds.
        describe: makes the manifest, once the arrays' checksums are known.
        refs: publishes the commit.
        confirm: called once all is written, while the medium may still be at it; what it raises
            undoes the commit.
        branch: the branch to move.
        seq: the number of the new ref.
        position: tokens read.

    Raises:
        Conflict: somebody else took the number.
        OSError: the disk refused.
        StoreError: the medium refused.
        ValueError: the attributes are larger than what can be read.
    """
    name = new_commit_name(position)
    with backend.draft(commit_key(name)) as draft:
        found = parts(arrays)
        specs = {each: part.spec for each, part in found.items()}
        manifest = describe(specs)
        document = manifest.data
        if len(document) > MAX_DOCUMENT:  # no reader would accept it
            raise ValueError(
                f"attributes, fingerprints and array names take {len(document)} bytes; at most "
                f"{MAX_DOCUMENT} are allowed"
            )
        contents: dict[str, list[Buffer]] = {DOCUMENT: [document]}
        checksums: dict[str, int] = {}
        for part in found.values():
            contents |= part.chunks
            checksums |= part.crc32
        draft.write("", list(packed({**contents, **documents(specs)}, checksums)))
        kept = confirm()
        commit = Commit(name, manifest.id, position)
        ref = refs.publish(branch, seq, commit, through=draft)
        return ref, replace(manifest, arrays=placed(specs, len(document))[0]), kept
