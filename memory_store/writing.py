"""Writing a commit: everything is on disk before the ref that makes it visible."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from memory_store.arrays import chunks, raw, storable
from memory_store.canonical import canonical, sha256
from memory_store.errors import Corrupt
from memory_store.fields import Fields
from memory_store.files import MAX_DOCUMENT, Batch, sync_folder
from memory_store.manifest import Manifest
from memory_store.manifest_reader import from_attributes
from memory_store.names import commit_folder, commits_folder, new_commit_name, partial
from memory_store.protocol import Commit, Ref
from memory_store.refs import Pending, Refs
from memory_store.zarrformat import ArraySpec, array_document

WORTH_A_THREAD = 2**20  # bytes


def write_commit(
    root: Path,
    arrays: Mapping[str, np.ndarray],
    describe: Callable[[Mapping[str, ArraySpec]], Manifest],
    refs: Refs,
    *,
    branch: str,
    seq: int,
    position: int,
    durable: bool,
) -> Ref:
    """Write arrays and attributes as a new commit, and publish it.

    On any error the folder is as it was, unless the ref got through: then the commit stays.

    Args:
        root: the session's folder.
        arrays: what the commit itself holds.
        describe: makes the manifest, once the arrays' checksums are known.
        refs: publishes the commit.
        branch: the branch to move.
        seq: the number of the new ref.
        position: tokens read.
        durable: whether to wait for the disk.

    Raises:
        Conflict: somebody else took the number.
        OSError: the disk refused.
        ValueError: the snapshot is larger, or its numbers, than what can be read.
    """
    final = commit_folder(root, new_commit_name(position))
    folder = partial(final)
    ref: Pending | None = None
    try:
        with Batch(durable=durable) as batch:
            folder.mkdir()
            manifest = describe(_write_arrays(folder, arrays, batch))
            document = canonical(manifest.document)
            _check_readable(manifest, len(document), final / "zarr.json")
            batch.write(folder / "zarr.json", [document])
            ref = refs.prepare(branch, seq, Commit(final.name, manifest.id, position))
            batch.write(ref.temporary, [ref.data])
            batch.sync([*(folder / name for name in arrays), folder])
        # Only a complete folder loses the mark of a partial one.
        os.rename(folder, final)
        if durable:
            sync_folder(commits_folder(root))
        return refs.publish(ref, durable=durable)
    except BaseException:
        if ref is None or not refs.is_published(ref):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(final, ignore_errors=True)
        if ref is not None:
            ref.temporary.unlink(missing_ok=True)
        raise


def _check_readable(manifest: Manifest, size: int, path: Path) -> None:
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


def _write_arrays(
    folder: Path, arrays: Mapping[str, np.ndarray], batch: Batch
) -> dict[str, ArraySpec]:
    """Write the arrays; returns what the attributes will say of them."""
    stored = {name: storable(array) for name, array in arrays.items()}
    # sha256 takes longer than all else for large arrays, and leaves the interpreter to others.
    hashes = {
        name: batch.call(sha256, raw(array))
        for name, array in stored.items()
        if array.nbytes >= WORTH_A_THREAD
    }
    specs = {}
    for name, array in stored.items():
        (folder / name).mkdir()
        crcs = []
        for chunk in chunks(array):
            batch.write(folder / name / chunk.name, chunk.buffers)
            crcs.append(chunk.crc32c)
        document = array_document(array.shape, array.dtype.name)
        batch.write(folder / name / "zarr.json", [canonical(document)])
        digest = hashes[name].result() if name in hashes else sha256(raw(array))
        specs[name] = ArraySpec(array.shape, array.dtype.name, tuple(crcs), digest)
    return specs
