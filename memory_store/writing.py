"""Writing a commit: everything lasts before the ref that makes it visible."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from memory_store.arrays import chunks, digest
from memory_store.backend import MAX_DOCUMENT, Backend, Buffer, Draft
from memory_store.canonical import canonical
from memory_store.errors import Corrupt
from memory_store.fields import Fields
from memory_store.manifest import Manifest
from memory_store.manifest_reader import from_attributes
from memory_store.names import commit_key, new_commit_name
from memory_store.packing import DOCUMENT, documents, packed, placed
from memory_store.protocol import Commit, Ref
from memory_store.refs import Refs
from memory_store.zarrformat import ArraySpec
from memory_store.zipformat import crc32_of

WORTH_A_THREAD = 2**20  # bytes


def write_commit(
    backend: Backend,
    arrays: Mapping[str, np.ndarray],
    describe: Callable[[Mapping[str, ArraySpec]], Manifest],
    refs: Refs,
    *,
    branch: str,
    seq: int,
    position: int,
) -> tuple[Ref, Manifest]:
    """Write arrays and attributes as a new commit, and publish it.

    On any error the session is as it was, unless the ref got through: then the commit stays.

    Args:
        backend: where to.
        arrays: what the commit itself holds.
        describe: makes the manifest, once the arrays' checksums are known.
        refs: publishes the commit.
        branch: the branch to move.
        seq: the number of the new ref.
        position: tokens read.

    Raises:
        Conflict: somebody else took the number.
        OSError: the disk refused.
        StoreError: the medium refused.
        ValueError: the snapshot is larger, or its numbers, than what can be read.
    """
    name = new_commit_name(position)
    with backend.draft(commit_key(name)) as draft:
        contents, checksums, specs = _prepared(arrays, draft)
        manifest = describe(specs)
        document = canonical(manifest.document)
        _check_readable(manifest, len(document), backend.name(commit_key(name)))
        contents = {DOCUMENT: [document], **contents, **documents(specs)}
        draft.write("", list(packed(contents, checksums)))
        commit = Commit(name, manifest.id, position)
        ref = refs.publish(branch, seq, commit, through=draft)
        return ref, replace(manifest, arrays=placed(specs, len(document)))


def _check_readable(manifest: Manifest, size: int, path: str) -> None:
    """Refuse to acknowledge what no reader would accept."""
    if size > MAX_DOCUMENT:
        raise ValueError(
            f"attributes, fingerprints and array names take {size} bytes; at most {MAX_DOCUMENT} "
            "are allowed"
        )
    try:
        from_attributes(Fields(manifest.attributes, path, "attributes"))
    except Corrupt as error:
        raise ValueError(f"the snapshot could not be read again: {error}") from error


def _prepared(
    arrays: Mapping[str, np.ndarray], draft: Draft
) -> tuple[dict[str, list[Buffer]], dict[str, int], dict[str, ArraySpec]]:
    """Chunks by the names of members, their crc32, and what the attributes will say of arrays."""
    # sha256 takes longer than all else for large arrays, and leaves the interpreter to others.
    digests = {
        name: draft.call(digest, array)
        for name, array in arrays.items()
        if array.nbytes >= WORTH_A_THREAD
    }
    contents, checksums, specs = {}, {}, {}
    for name, array in sorted(arrays.items()):
        crcs = []
        for chunk in chunks(array):
            member = f"{name}/{chunk.name}"
            contents[member] = chunk.buffers
            checksums[member] = crc32_of(chunk.buffers)
            crcs.append(chunk.crc32c)
        sha256 = digests[name].result() if name in digests else digest(array)
        specs[name] = ArraySpec(array.shape, array.dtype.name, tuple(crcs), sha256)
    return contents, checksums, specs
