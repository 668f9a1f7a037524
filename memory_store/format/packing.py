"""A commit as one file: a Zip archive, not compressed, that Zarr's `ZipStore` opens as a group.

One file is one fsync, one request and one name. Where its parts lie follows from what the commit's
attributes say of its arrays, so reading needs neither the archive's directory nor its checksums:

    zarr.json   array/c.0.0 …   array/zarr.json …   directory
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

import numpy as np

from memory_store.backend import MAX_DOCUMENT, Backend, Buffer, Extent
from memory_store.errors import Corrupt
from memory_store.format.chunks import chunk_bytes, chunks, members
from memory_store.format.json import canonical
from memory_store.format.names import RECORD, TOKENS
from memory_store.format.zarr import Stored, array_document
from memory_store.format.zip import Member, crc32_of, directory, first_member, header, header_size

DOCUMENT = "zarr.json"
FIRST = 2**16  # bytes read at once, in the hope that the document is among them

Spec = TypeVar("Spec", bound=Stored)


def placed(
    arrays: Mapping[str, Spec], document_size: int, name: str = DOCUMENT
) -> tuple[dict[str, Spec], int]:
    """The arrays with the byte at which the chunks of each begin, and the one where all end.

    Args:
        document_size: bytes of the member before them.
        name: that member's.
    """
    found, at = {}, header_size(name) + document_size
    for array, spec in sorted(arrays.items()):
        found[array] = replace(spec, start=at)
        size = chunk_bytes(spec)
        for member in members(array, spec):
            at += header_size(member) + size
    return found, at


def documents(arrays: Mapping[str, Stored]) -> dict[str, list[Buffer]]:
    """The members that say what the arrays are."""
    return {
        f"{name}/{DOCUMENT}": [_document(spec.shape, spec.dtype)]
        for name, spec in sorted(arrays.items())
    }


@lru_cache(maxsize=256)
def _document(shape: tuple[int, ...], dtype: str) -> bytes:
    return canonical(array_document(shape, dtype))


def packed(
    contents: Mapping[str, Sequence[Buffer]], checksums: Mapping[str, int]
) -> Iterator[Buffer]:
    """The bytes of an archive of these members.

    Args:
        contents: the members in their order.
        checksums: crc32 of those for which it is known.
    """
    found = []
    for name, buffers in contents.items():
        checksum = checksums[name] if name in checksums else crc32_of(buffers)
        found.append(Member(name, sum(map(len, buffers)), checksum))
        yield header(found[-1])
        yield from buffers
    yield directory(*laid_out(found))


def laid_out(contents: Iterable[Member]) -> tuple[list[tuple[Member, int]], int]:
    """Members with the byte at which each begins, and the one at which the directory does."""
    found, at = [], 0
    for member in contents:
        found.append((member, at))
        at += header_size(member.name) + member.size
    return found, at


def packed_log(record: bytes, ids: np.ndarray) -> bytes:
    """What is left of a commit whose state was let go: an archive of its record and token ids."""
    contents: dict[str, Sequence[Buffer]] = {RECORD: [record]}
    contents |= {f"{TOKENS}/{chunk.name}": chunk.buffers for chunk in chunks(ids)}
    return b"".join(packed(contents, {}))


def read_document(backend: Backend, key: str, name: str = DOCUMENT) -> tuple[bytes, int]:
    """The first member of the archive under `key`, of that name, and the size of the archive.

    Raises:
        Corrupt: missing, or no such archive.
    """
    first, size = backend.beginning(key, FIRST)
    member = first_member(first, name)
    if member is None or member.size > MAX_DOCUMENT:
        raise Corrupt(
            f"{backend.name(key)}: damaged at its beginning. Restore the file from a copy."
        )
    begin = header_size(name)
    found = first[begin : begin + member.size]
    if len(found) < member.size:
        at = begin + len(found)
        found += read_part(backend, Extent(key, at, member.size - len(found)))
    return found, size


def read_part(backend: Backend, extent: Extent) -> bytes:
    """The bytes of an extent; Corrupt if they are not there."""
    assert extent.size is not None
    content = backend.open(extent)  # first: memory is taken for what is there
    try:
        buffer = np.empty(extent.size, np.uint8)
        content.read_into(buffer)
    finally:
        content.close()
    return buffer.tobytes()
