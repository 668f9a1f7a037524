"""Arrays as chunks: the bytes in C order, little-endian, then their crc32c.

A chunk is a member of the commit's file, `<array>/c.0.0…`, or a file of its own in the folders that
early versions wrote; see `zarr` for how large arrays are split, `packing` for the file.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from memory_store.backend import Backend, Buffer, Extent
from memory_store.errors import Corrupt
from memory_store.format.json import crc32c
from memory_store.format.zarr import (
    ITEMSIZE,
    ArraySpec,
    Stored,
    chunk_count,
    chunk_name,
    chunk_shape,
    dtype_name,
)
from memory_store.format.zip import header_size

CHECKSUM = 4  # bytes at the end of a chunk
WORTH_A_PIECE = 2**12  # bytes; less is copied
BLOCK = 2**19  # bytes that are read at once where they need not be kept: these stay in the cache


@dataclass(frozen=True)
class Chunk:
    """A chunk ready to be written: its file name and content."""

    name: str
    buffers: list[Buffer]
    crc32c: int


def runs(array: np.ndarray) -> Iterator[np.ndarray]:
    """The bytes of an array in C order and little-endian, one-dimensional, piece by piece.

    They share its memory where they can: to copy a window costs more than to write it.
    """
    if array.ndim < 2 or array.flags.c_contiguous or array[:1].nbytes < WORTH_A_PIECE:
        # ascontiguousarray makes a scalar one-dimensional
        yield np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    else:
        for row in array:
            yield from runs(row)


def chunks(array: np.ndarray) -> Iterator[Chunk]:
    """The chunks of an array."""
    shape, dtype = array.shape, dtype_name(array.dtype)
    chunk = chunk_shape(shape, dtype)
    size = math.prod(chunk) * ITEMSIZE[dtype]
    for index in range(chunk_count(shape, dtype)):
        part = array[index * chunk[0] : (index + 1) * chunk[0]] if shape else array
        buffers = list(runs(part))
        buffers.append(np.zeros(size - part.nbytes, np.uint8))  # Zarr's chunks all have one size
        crc = 0
        for buffer in buffers:
            crc = crc32c(buffer, crc)
        tail = crc.to_bytes(CHECKSUM, "little")
        name = chunk_name(array.ndim, index)
        yield Chunk(name, [*(buffer.data for buffer in buffers), tail], crc)


def digest(array: np.ndarray) -> str:
    """sha256 of the bytes of an array in C order, in hex."""
    found = hashlib.sha256()
    for run in runs(array):
        found.update(run.data)
    return found.hexdigest()


def members(name: str, spec: Stored) -> Iterator[str]:
    """What the chunks of the array `name` are called in the commit's file."""
    for index in range(len(spec.crc32c)):
        yield f"{name}/{chunk_name(len(spec.shape), index)}"


def extents(folder: str, spec: Stored) -> Iterator[Extent]:
    """Where the chunks of an array lie.

    Args:
        folder: the array's, be it in a folder or in a file: `<commit>/<array>`.
        spec: what is known of it.
    """
    size = chunk_bytes(spec)
    if spec.start is None:
        yield from (Extent(key, 0, size, whole=True) for key in members(folder, spec))
        return
    key, _, name = folder.rpartition("/")
    at = spec.start
    for member in members(name, spec):
        at += header_size(member)
        yield Extent(key, at, size)
        at += size


def called(backend: Backend, folder: str, spec: Stored) -> str:
    """What messages call an array: a path that is there, and which part of it if it is a file."""
    if spec.start is None:
        return backend.name(folder)
    key, _, name = folder.rpartition("/")
    return f"{backend.name(key)}: {name}"


def memory(nbytes: int) -> np.ndarray:
    """New memory, one-dimensional uint8."""
    return np.empty(nbytes, np.uint8)


def read_array(
    backend: Backend, folder: str, spec: Stored, allocate: Callable[[int], np.ndarray] = memory
) -> np.ndarray:
    """Read the array in `folder` and check that it is the one that `spec` describes.

    Args:
        backend: where it is kept.
        folder: the array's folder.
        spec: what is known of it.
        allocate: where to read it to: that many bytes or more, one-dimensional uint8.

    Raises:
        Corrupt: a chunk is missing, damaged, or a sound one from elsewhere.
    """
    # All sizes are checked before memory is taken: a shape must not promise what is not there.
    for extent in extents(folder, spec):
        backend.check_size(extent)
    try:
        data = allocate(spec.nbytes)[: spec.nbytes]
    except MemoryError as error:
        raise Corrupt(
            f"{called(backend, folder, spec)}: {spec.nbytes} bytes do not fit in memory. Free "
            "some, or load it elsewhere."
        ) from error
    fill([data], backend, folder, spec)
    return _shaped(data, spec.dtype, spec.shape)


def fill(buffers: Sequence[np.ndarray], backend: Backend, folder: str, spec: Stored) -> None:
    """Read the array in `folder` into buffers, and check that it is the one `spec` describes.

    Args:
        buffers: one-dimensional uint8, together as long as the array; its bytes in C order go into
            them, one after the other. So they need not be copied to where they belong.

    Raises:
        Corrupt: a chunk is missing, damaged, or a sound one from elsewhere.
    """
    size, nbytes, left = chunk_bytes(spec) - CHECKSUM, spec.nbytes, deque(buffers)
    for i, extent in enumerate(extents(folder, spec)):
        n_bytes = min(size, nbytes - i * size)
        parts = buffers if n_bytes == nbytes else _first(left, n_bytes)
        # Behind the array's bytes: padding, then the checksum.
        rest = np.empty(size - n_bytes + CHECKSUM, np.uint8)
        content = backend.open(extent)
        try:
            content.read_into(*parts, rest)
        finally:
            content.close()
        crc = 0
        for part in (*parts, rest[:-CHECKSUM]):
            crc = crc32c(part, crc)
        if crc != int.from_bytes(rest[-CHECKSUM:].tobytes(), "little"):
            problem = "damaged, its crc32c does not fit"
        elif crc != spec.crc32c[i]:
            problem = "a sound chunk, but not the one that was committed here"
        else:
            continue
        chunk = chunk_name(len(spec.shape), i)
        path = f"{called(backend, folder, spec)}/{chunk}"
        raise Corrupt(f"{path}: {problem}. Restore the file from a copy.")


def _first(buffers: deque[np.ndarray], nbytes: int) -> list[np.ndarray]:
    """Take the first bytes of buffers away."""
    found = []
    while nbytes:
        part = buffers.popleft()
        if len(part) > nbytes:
            buffers.appendleft(part[nbytes:])
            part = part[:nbytes]
        found.append(part)
        nbytes -= len(part)
    return found


def read_rows(
    backend: Backend, folder: str, spec: Stored, start: int, stop: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """The rows [start, stop) along axis 0, a few at a time, as (first, end, rows).

    No checksum is looked at: this is for those who know what should be there. Each array is void
    when the next one is read.

    Raises:
        Corrupt: a chunk is missing, or not as large as promised.
    """
    row = spec.nbytes // max(1, spec.shape[0])
    per_chunk = chunk_shape(spec.shape, spec.dtype)[0]
    buffer = memory(max(row, BLOCK))
    for index, extent in enumerate(extents(folder, spec)):
        begin = index * per_chunk
        first, end = max(start, begin), min(stop, begin + per_chunk)
        if first >= end:
            continue
        content = backend.open(extent)
        try:
            content.skip((first - begin) * row)
            while first < end:
                until = min(end, first + max(1, BLOCK // row))
                data = buffer[: (until - first) * row]
                content.read_into(data)
                yield first, until, _shaped(data, spec.dtype, (until - first, *spec.shape[1:]))
                first = until
        finally:
            content.close()


def check_sha256(backend: Backend, folder: str, spec: ArraySpec, array: np.ndarray) -> None:
    """Check an array that was read from a folder against its sha256.

    Raises:
        Corrupt: they do not fit.
    """
    if digest(array) != spec.sha256:
        name = called(backend, folder, spec)
        raise Corrupt(f"{name}: damaged, its sha256 does not fit. Restore it from a copy.")


def _shaped(data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return data.view(np.dtype(dtype).newbyteorder("<")).reshape(shape)


def chunk_bytes(spec: Stored) -> int:
    """Bytes of a chunk, its checksum among them."""
    return math.prod(chunk_shape(spec.shape, spec.dtype)) * ITEMSIZE[spec.dtype] + CHECKSUM
