"""Arrays as chunks: little-endian bytes in C order, followed by their crc32c.

A chunk is a member of the commit's file, `<array>/c.0.0…`, or a file in a commit folder of schema
1. Module `zarr` defines how large arrays are split, module `packing` the layout of the file.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np

from memory_store.backend import Backend, Buffer, Content, Extent
from memory_store.errors import Corrupt
from memory_store.format.json import crc32c
from memory_store.format.zarr import (
    ITEMSIZE,
    MAX_CHUNK,
    ArraySpec,
    StoredArray,
    chunk_count,
    chunk_name,
    chunk_shape,
    dtype_name,
)
from memory_store.format.zip import header_size

CHECKSUM = 4  # bytes at the end of a chunk
ZERO_COPY_THRESHOLD = 2**12  # bytes of a row; shorter rows are copied
BLOCK = 2**19  # bytes per read of `read_rows`; fits in the processor's cache


@dataclass(frozen=True)
class Chunk:
    """A chunk to be written: its name, its content and the checksum of its bytes."""

    name: str
    buffers: list[Buffer]
    crc32c: int


def contiguous_runs(array: np.ndarray) -> Iterator[np.ndarray]:
    """The little-endian bytes of an array in C order, as one-dimensional uint8 runs.

    Runs share the array's memory where possible: copying a window takes longer than writing it.
    """
    if array.ndim < 2 or array.flags.c_contiguous or array[:1].nbytes < ZERO_COPY_THRESHOLD:
        # ascontiguousarray makes a scalar one-dimensional
        yield np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    else:
        for row in array:
            yield from contiguous_runs(row)


def chunks(array: np.ndarray, limit: int = MAX_CHUNK) -> Iterator[Chunk]:
    """The chunks of an array, of `limit` bytes at most or of one row."""
    shape, dtype = array.shape, dtype_name(array.dtype)
    chunk = chunk_shape(shape, dtype, limit)
    size = math.prod(chunk) * ITEMSIZE[dtype]
    for index in range(chunk_count(shape, dtype, limit)):
        part = array[index * chunk[0] : (index + 1) * chunk[0]] if shape else array
        buffers = list(contiguous_runs(part))
        buffers.append(np.zeros(size - part.nbytes, np.uint8))  # Zarr pads the last chunk
        crc = 0
        for buffer in buffers:
            crc = crc32c(buffer, crc)
        tail = crc.to_bytes(CHECKSUM, "little")
        name = chunk_name(array.ndim, index)
        yield Chunk(name, [*(buffer.data for buffer in buffers), tail], crc)


def digest(array: np.ndarray) -> str:
    """sha256 of the little-endian bytes of an array in C order, in hex."""
    hasher = hashlib.sha256()
    for run in contiguous_runs(array):
        hasher.update(run.data)
    return hasher.hexdigest()


def member_names(name: str, spec: StoredArray) -> Iterator[str]:
    """The names of the chunks of array `name` in the commit's file."""
    for index in range(len(spec.crc32c)):
        yield f"{name}/{chunk_name(len(spec.shape), index)}"


def extents(folder: str, spec: StoredArray) -> Iterator[Extent]:
    """The extents of the chunks of an array.

    Args:
        folder: the array's key, in a folder or in a file: `<commit>/<array>`.
        spec: its location and shape.
    """
    size = chunk_bytes(spec)
    if spec.start is None:
        yield from (Extent(key, 0, size, whole=True) for key in member_names(folder, spec))
        return
    key, _, name = folder.rpartition("/")
    at = spec.start
    for member in member_names(name, spec):
        at += header_size(member)
        yield Extent(key, at, size)
        at += size


def array_label(backend: Backend, folder: str, spec: StoredArray) -> str:
    """The name of an array in messages: its folder, or the commit's file and the array in it."""
    if spec.start is None:
        return backend.name(folder)
    key, _, name = folder.rpartition("/")
    return f"{backend.name(key)}: {name}"


def memory(nbytes: int) -> np.ndarray:
    """Uninitialized memory, one-dimensional uint8."""
    return np.empty(nbytes, np.uint8)


def read_array(
    backend: Backend, folder: str, spec: StoredArray, allocate: Callable[[int], np.ndarray] = memory
) -> np.ndarray:
    """Read an array and check it against `spec`.

    Args:
        backend: the medium.
        folder: the array's key.
        spec: its location, shape and checksums.
        allocate: returns the given number of bytes or more, one-dimensional uint8, to read into.

    Raises:
        Corrupt: a chunk is missing, damaged, or an intact chunk of another array.
    """
    # Sizes are checked before memory is allocated: a shape may claim more than the files hold.
    for extent in extents(folder, spec):
        backend.check_size(extent)
    try:
        data = allocate(spec.nbytes)[: spec.nbytes]
    except MemoryError as error:
        raise Corrupt(
            f"{array_label(backend, folder, spec)}: {spec.nbytes} bytes do not fit in memory. Free "
            "some, or load the session on a larger machine."
        ) from error
    fill([data], backend, folder, spec)
    return _shaped(data, spec.dtype, spec.shape)


def fill(buffers: Sequence[np.ndarray], backend: Backend, folder: str, spec: StoredArray) -> None:
    """Read an array into buffers and check it against `spec`.

    Args:
        buffers: one-dimensional uint8, together as long as the array. They receive its bytes in C
            order, one after another, so that the bytes need not be copied to their destination.
        backend: the medium.
        folder: the array's key.
        spec: its location, shape and checksums.

    Raises:
        Corrupt: a chunk is missing, damaged, or an intact chunk of another array.
    """
    size, nbytes, left = chunk_bytes(spec) - CHECKSUM, spec.nbytes, deque(buffers)
    for i, extent in enumerate(extents(folder, spec)):
        n_bytes = min(size, nbytes - i * size)
        parts = buffers if n_bytes == nbytes else _first(left, n_bytes)
        with closing(backend.open(extent)) as content:
            problem = _read_chunk(content, parts, size - n_bytes, spec.crc32c[i])
        if problem:
            raise _damaged(backend, folder, spec, i, problem)


def _read_chunk(
    content: Content, parts: Sequence[np.ndarray], padding: int, committed: int
) -> str | None:
    """Read a chunk into buffers; returns what is wrong with it.

    Args:
        content: the open chunk.
        parts: one-dimensional uint8, together as long as its part of the array.
        padding: bytes between that part and the checksum.
        committed: the crc32c that was committed.
    """
    rest = np.empty(padding + CHECKSUM, np.uint8)
    content.read_into(*parts, rest)
    crc = 0
    for part in (*parts, rest[:-CHECKSUM]):
        crc = crc32c(part, crc)
    if crc != int.from_bytes(rest[-CHECKSUM:].tobytes(), "little"):
        return "damaged, its crc32c does not match"
    return None if crc == committed else "an intact chunk, but not the one that was committed here"


def _damaged(backend: Backend, folder: str, spec: StoredArray, index: int, problem: str) -> Corrupt:
    path = f"{array_label(backend, folder, spec)}/{chunk_name(len(spec.shape), index)}"
    return Corrupt(f"{path}: {problem}. Restore the file from a copy.")


def _first(buffers: deque[np.ndarray], nbytes: int) -> list[np.ndarray]:
    """Remove the first `nbytes` bytes from the buffers, and return them."""
    taken = []
    while nbytes:
        part = buffers.popleft()
        if len(part) > nbytes:
            buffers.appendleft(part[nbytes:])
            part = part[:nbytes]
        taken.append(part)
        nbytes -= len(part)
    return taken


def read_rows(
    backend: Backend, folder: str, spec: StoredArray, start: int, stop: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """The rows [start, stop) along axis 0, in blocks, as (first, end, rows).

    Checksums are not verified: the caller compares the rows with known data. Each block overwrites
    the one before.

    Raises:
        Corrupt: a chunk is missing or has another size.
    """
    row = spec.nbytes // max(1, spec.shape[0])
    per_chunk = chunk_shape(spec.shape, spec.dtype, spec.limit)[0]
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


def chunk_rows(spec: StoredArray, index: int) -> tuple[int, int]:
    """The first and the last + 1 of the rows along axis 0 in chunk `index`."""
    rows = chunk_shape(spec.shape, spec.dtype, spec.limit)[0]
    return index * rows, min((index + 1) * rows, spec.shape[0])


def read_chunk(backend: Backend, folder: str, spec: StoredArray, index: int) -> np.ndarray:
    """The rows of chunk `index`, checked against `spec`.

    Args:
        backend: the medium.
        folder: the array's key.
        spec: its location, shape and checksums.
        index: one of the array's chunks.

    Raises:
        Corrupt: the chunk is missing, damaged, or an intact chunk of another array.
    """
    first, end = chunk_rows(spec, index)
    shape = (end - first, *spec.shape[1:])
    extent = next(islice(extents(folder, spec), index, None))
    with closing(backend.open(extent)) as content:  # checks the size before memory is allocated
        data = memory(math.prod(shape) * ITEMSIZE[spec.dtype])
        padding = chunk_bytes(spec) - CHECKSUM - len(data)
        problem = _read_chunk(content, [data], padding, spec.crc32c[index])
    if problem:
        raise _damaged(backend, folder, spec, index, problem)
    return _shaped(data, spec.dtype, shape)


def check_sha256(backend: Backend, folder: str, spec: ArraySpec, array: np.ndarray) -> None:
    """Check an array that was read from `folder` against its sha256.

    Raises:
        Corrupt: they do not match.
    """
    if digest(array) != spec.sha256:
        name = array_label(backend, folder, spec)
        raise Corrupt(f"{name}: damaged, its sha256 does not match. Restore it from a copy.")


def _shaped(data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return data.view(np.dtype(dtype).newbyteorder("<")).reshape(shape)


def chunk_bytes(spec: StoredArray) -> int:
    """The size of a chunk including its checksum, in bytes."""
    shape = chunk_shape(spec.shape, spec.dtype, spec.limit)
    return math.prod(shape) * ITEMSIZE[spec.dtype] + CHECKSUM
