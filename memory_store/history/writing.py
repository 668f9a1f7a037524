"""Writing a commit: the new part of a snapshot, all of it durable before the ref that names it."""

import sys
from collections.abc import Callable, Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from memory_store.backend import MAX_DOCUMENT, Backend, Buffer
from memory_store.format.chunks import chunks, digest
from memory_store.format.header import checked_fingerprints
from memory_store.format.json import now
from memory_store.format.manifest import SCHEMA, SCHEMA_WITH_LOGS, Manifest, WindowSpec
from memory_store.format.names import TOKENS, commit_key, new_commit_name
from memory_store.format.packing import DOCUMENT, documents, packed, placed
from memory_store.format.zarr import MAX_CHUNK, MAX_LOG_CHUNK, ArraySpec, dtype_name
from memory_store.format.zip import crc32_of
from memory_store.history.checksums import SlotChecksums
from memory_store.history.delta import Plan, SlotsChanged, confirm, from_slot, plan
from memory_store.history.reading import Commits
from memory_store.history.refs import Refs
from memory_store.history.validation import checked
from memory_store.history.walk import jump_from
from memory_store.types import WHOLE_EVERY, Commit, Ref, Snapshot, Window

LIBRARIES = {"python": sys.version.split()[0], "numpy": np.__version__}
THREAD_THRESHOLD = 2**20  # bytes of an array that is hashed in a thread


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
    rewrite: frozenset[str] = frozenset()
    if parent and parent.position // WHOLE_EVERY != snapshot.position // WHOLE_EVERY:
        rewrite = frozenset(snapshot.windows)  # it can then be kept without those before it
    while True:
        todo = plan(snapshot.windows, before, commits, rewrite)

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
                schema=SCHEMA_WITH_LOGS if snapshot.logs else SCHEMA,
                logs={name: rows.start for name, rows in snapshot.logs.items()},
            )

        rows = {name: log.data for name, log in snapshot.logs.items()}
        new = {name: from_slot(each, todo.first[name]) for name, each in snapshot.windows.items()}
        try:
            with commits.scratch() as scratch:
                ref, manifest, checksums = write_commit(
                    commits.backend,
                    {**scratch.gathered(new), **snapshot.arrays, **rows, TOKENS: snapshot.tokens},
                    describe,
                    refs,
                    confirm=partial(confirm, todo, snapshot.windows, commits),
                    logs=rows.keys(),
                    branch=branch,
                    seq=seq,
                    position=snapshot.position,
                )
        except SlotsChanged as changed:
            rewrite |= changed.windows
            continue
        commits.remember(ref.commit, manifest, checksums)
        return ref


def _slots(window: Window) -> WindowSpec:
    data = window.data
    return WindowSpec(data.shape, dtype_name(data.dtype), window.axis, window.end, window.capacity)


@dataclass(frozen=True)
class Part:
    """An array to be written.

    Attributes:
        spec: its description in the attributes.
        chunks: member name → content.
        crc32: member name → checksum.
    """

    spec: ArraySpec
    chunks: Mapping[str, list[Buffer]]
    crc32: Mapping[str, int]


def parts(arrays: Mapping[str, np.ndarray], logs: Container[str] = ()) -> dict[str, Part]:
    """The parts of a commit, by the names of the arrays, sorted; `logs` are names of logs."""
    # sha256 takes longest and releases the interpreter's lock: a thread hashes the largest arrays
    # first, and this thread hashes the remaining ones after it has all other checksums.
    large = [name for name, array in arrays.items() if array.nbytes >= THREAD_THRESHOLD]
    large.sort(key=lambda name: -arrays[name].nbytes)
    with ThreadPoolExecutor(1) if large else nullcontext() as pool:
        begun = {name: pool.submit(digest, arrays[name]) for name in large if pool}

        def sha256(name: str) -> str:
            future = begun.get(name)
            return future.result() if future and not future.cancel() else digest(arrays[name])

        makers = {
            name: _checked(name, array, MAX_LOG_CHUNK if name in logs else MAX_CHUNK)
            for name, array in sorted(arrays.items())
        }
        return {name: make(sha256(name)) for name, make in makers.items()}


def _checked(name: str, array: np.ndarray, limit: int) -> Callable[[str], Part]:
    """All checksums of an array except its sha256; the result makes the part from that."""
    members = {f"{name}/{chunk.name}": chunk for chunk in chunks(array, limit)}
    crc32 = {member: crc32_of(chunk.buffers) for member, chunk in members.items()}
    crcs = tuple(chunk.crc32c for chunk in members.values())
    return lambda sha256: Part(
        ArraySpec(array.shape, dtype_name(array.dtype), crcs, sha256, limit=limit),
        {member: chunk.buffers for member, chunk in members.items()},
        crc32,
    )


def write_commit(
    backend: Backend,
    arrays: Mapping[str, np.ndarray],
    describe: Callable[[Mapping[str, ArraySpec]], Manifest],
    refs: Refs,
    *,
    confirm: Callable[[], SlotChecksums],
    logs: Container[str] = (),
    branch: str,
    seq: int,
    position: int,
) -> tuple[Ref, Manifest, SlotChecksums]:
    """Write arrays and attributes as a new commit, and publish it.

    On an exception the session is unchanged, unless the ref was created: then the commit stays.

    Args:
        backend: the medium.
        arrays: the arrays of the commit.
        describe: makes the manifest from the arrays with their checksums.
        refs: publishes the commit.
        confirm: called after all writes, which may still be in progress; its exceptions undo the
            commit.
        logs: the arrays that are rows of logs.
        branch: the branch to move.
        seq: the number of the new ref.
        position: tokens read.

    Raises:
        Conflict: another writer published a ref of that number.
        OSError: the disk failed.
        StoreError: the medium failed.
        ValueError: the attributes exceed `MAX_DOCUMENT`.
    """
    name = new_commit_name(position)
    with backend.draft(commit_key(name)) as draft:
        prepared = parts(arrays, logs)
        specs = {each: part.spec for each, part in prepared.items()}
        manifest = describe(specs)
        document = manifest.data
        if len(document) > MAX_DOCUMENT:  # no reader accepts it
            raise ValueError(
                f"attributes, fingerprints and array names take {len(document)} bytes; allowed: at "
                f"most {MAX_DOCUMENT}"
            )
        contents: dict[str, list[Buffer]] = {DOCUMENT: [document]}
        crc32: dict[str, int] = {}
        for part in prepared.values():
            contents |= part.chunks
            crc32 |= part.crc32
        draft.write("", list(packed({**contents, **documents(specs)}, crc32)))
        checksums = confirm()
        commit = Commit(name, manifest.id, position)
        ref = refs.publish(branch, seq, commit, through=draft)
        return ref, replace(manifest, arrays=placed(specs, len(document))[0]), checksums
