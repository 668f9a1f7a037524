"""A commit as one file: an uncompressed Zip archive that Zarr's `ZipStore` opens as a group.

One file costs one fsync and one request. The offsets of its members follow from the commit's
attributes, so reading needs neither the archive's directory nor its checksums:

    zarr.json   array/c.0.0 …   array/zarr.json …   directory
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

import numpy as np

from memory_store.backend import MAX_DOCUMENT, Backend, Buffer, Extent
from memory_store.errors import Corrupt
from memory_store.format.chunks import chunk_bytes, chunks, member_names
from memory_store.format.json import canonical
from memory_store.format.names import RECORD
from memory_store.format.zarr import StoredArray, array_document
from memory_store.format.zip import Member, crc32_of, directory, first_member, header, header_size

DOCUMENT = "zarr.json"
PREFIX_BYTES = 2**16  # bytes of the first read; it usually contains the document

Spec = TypeVar("Spec", bound=StoredArray)


def placed(
    arrays: Mapping[str, Spec], document_size: int, name: str = DOCUMENT
) -> tuple[dict[str, Spec], int]:
    """The arrays with the offset of the chunks of each, and the offset at which all chunks end.

    Args:
        document_size: size of the member before the chunks, in bytes.
        name: the name of that member.
    """
    located, at = {}, header_size(name) + document_size
    for array, spec in sorted(arrays.items()):
        located[array] = replace(spec, start=at)
        size = chunk_bytes(spec)
        for member in member_names(array, spec):
            at += header_size(member) + size
    return located, at


def documents(arrays: Mapping[str, StoredArray]) -> dict[str, list[Buffer]]:
    """The `zarr.json` of each array, by member name."""
    return {
        f"{name}/{DOCUMENT}": [_document(spec.shape, spec.dtype, spec.limit)]
        for name, spec in sorted(arrays.items())
    }


@lru_cache(maxsize=256)
def _document(shape: tuple[int, ...], dtype: str, limit: int) -> bytes:
    return canonical(array_document(shape, dtype, limit))


def packed(
    contents: Mapping[str, Sequence[Buffer]], checksums: Mapping[str, int]
) -> Iterator[Buffer]:
    """The bytes of an archive.

    Args:
        contents: the members, in order.
        checksums: crc32 of members, where it is known; the others are computed.
    """
    members = []
    for name, buffers in contents.items():
        checksum = checksums[name] if name in checksums else crc32_of(buffers)
        members.append(Member(name, sum(map(len, buffers)), checksum))
        yield header(members[-1])
        yield from buffers
    yield directory(*laid_out(members))


def laid_out(contents: Iterable[Member]) -> tuple[list[tuple[Member, int]], int]:
    """The members with their offsets, and the offset of the directory."""
    layout, at = [], 0
    for member in contents:
        layout.append((member, at))
        at += header_size(member.name) + member.size
    return layout, at


def archive_size(document: bytes, arrays: Mapping[str, StoredArray]) -> int:
    """The size of a commit's file, in bytes."""
    members = [Member(DOCUMENT, len(document), 0)]
    for name, spec in sorted(arrays.items()):
        members += [Member(each, chunk_bytes(spec), 0) for each in member_names(name, spec)]
    members += [Member(name, sum(map(len, parts)), 0) for name, parts in documents(arrays).items()]
    layout, end = laid_out(members)
    return end + len(directory(layout, end))


def packed_log(
    record: bytes, specs: Mapping[str, StoredArray], arrays: Mapping[str, np.ndarray]
) -> bytes:
    """The archive that replaces a deleted snapshot: its record, its token ids, its rows of logs."""
    contents: dict[str, Sequence[Buffer]] = {RECORD: [record]}
    for name, spec in sorted(specs.items()):
        for chunk in chunks(arrays[name], spec.limit):
            contents[f"{name}/{chunk.name}"] = chunk.buffers
    return b"".join(packed(contents, {}))


def read_document(backend: Backend, key: str, name: str = DOCUMENT) -> tuple[bytes, int]:
    """The content of the first member of an archive, and the size of the archive.

    Raises:
        Corrupt: the archive is missing, or its first member is not a document called `name`.
    """
    first, size = backend.read_prefix(key, PREFIX_BYTES)
    member = first_member(first, name)
    if member is None or member.size > MAX_DOCUMENT:
        raise Corrupt(
            f"{backend.name(key)}: damaged in its first member. Restore the file from a copy."
        )
    begin = header_size(name)
    document = first[begin : begin + member.size]
    if len(document) < member.size:
        at = begin + len(document)
        document += read_part(backend, Extent(key, at, member.size - len(document)))
    return document, size


def read_part(backend: Backend, extent: Extent) -> bytes:
    """The bytes of an extent; Corrupt if the file is too short."""
    assert extent.size is not None
    content = backend.open(extent)  # checks the size before memory is allocated
    try:
        buffer = np.empty(extent.size, np.uint8)
        content.read_into(buffer)
    finally:
        content.close()
    return buffer.tobytes()
