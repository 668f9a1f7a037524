"""Arrays as chunk files: the bytes in C order, little-endian, then their crc32c.

One chunk is one file, `<array>/c.0.0…`; see `zarrformat` for how large arrays are split.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from memory_store.backend import Backend, Buffer
from memory_store.canonical import crc32c
from memory_store.errors import Corrupt
from memory_store.zarrformat import (
    ITEMSIZE,
    ArraySpec,
    Stored,
    chunk_count,
    chunk_name,
    chunk_shape,
)

CHECKSUM = 4  # bytes at the end of a chunk
WORTH_A_PIECE = 2**12  # bytes; less is copied
BLOCK = 2**18  # bytes that are read at once where they need not be kept: these stay in the cache


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
    shape, dtype = array.shape, array.dtype.name
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


def files(folder: str, spec: Stored) -> list[tuple[str, int]]:
    """The keys of the chunks that `spec` promises in `folder`, and their sizes in bytes."""
    size = _chunk_bytes(spec) + CHECKSUM
    return [(f"{folder}/{chunk_name(len(spec.shape), i)}", size) for i in range(len(spec.crc32c))]


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
    for key, due in files(folder, spec):
        backend.check_size(key, due)
    try:
        data = allocate(spec.nbytes)[: spec.nbytes]
    except MemoryError as error:
        raise Corrupt(
            f"{backend.name(folder)}: {spec.nbytes} bytes do not fit in memory. Free some, or load "
            "it elsewhere."
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
    size, left = _chunk_bytes(spec), deque(buffers)
    for i, (key, due) in enumerate(files(folder, spec)):
        parts, n_bytes = [], min(size, spec.nbytes - i * size)
        while n_bytes:
            part = left.popleft()
            if len(part) > n_bytes:
                left.appendleft(part[n_bytes:])
                part = part[:n_bytes]
            parts.append(part)
            n_bytes -= len(part)
        # Behind the array's bytes: padding, then the checksum.
        rest = np.empty(size - sum(map(len, parts)) + CHECKSUM, np.uint8)
        content = backend.open(key, due)
        try:
            content.read_into(*parts, rest)
        finally:
            content.close()
        crc = 0
        for part in (*parts, rest[:-CHECKSUM]):
            crc = crc32c(part, crc)
        if crc != int.from_bytes(rest[-CHECKSUM:].tobytes(), "little"):
            problem = "damaged, its crc32c does not fit. Restore it from a copy."
        elif crc != spec.crc32c[i]:
            problem = (
                "a sound chunk, but not the one that was committed here. Restore it from a copy."
            )
        else:
            continue
        raise Corrupt(f"{backend.name(key)}: {problem}")


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
    for index, (key, due) in enumerate(files(folder, spec)):
        begin = index * per_chunk
        first, end = max(start, begin), min(stop, begin + per_chunk)
        if first >= end:
            continue
        content = backend.open(key, due)
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


def check_sha256(name: str, spec: ArraySpec, array: np.ndarray) -> None:
    """Check an array that was read against its sha256; `name` is what messages call it.

    Raises:
        Corrupt: they do not fit.
    """
    if digest(array) != spec.sha256:
        raise Corrupt(f"{name}: damaged, its sha256 does not fit. Restore it from a copy.")


def _shaped(data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return data.view(np.dtype(dtype).newbyteorder("<")).reshape(shape)


def _chunk_bytes(spec: Stored) -> int:
    return math.prod(chunk_shape(spec.shape, spec.dtype)) * ITEMSIZE[spec.dtype]
