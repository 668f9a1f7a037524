"""The Zarr v3 documents and chunk grid of a commit, identical to those of zarr-python.

A commit is a plain group that any Zarr v3 reader opens. The store reads and writes it without
zarr-python: an uncompressed array is its bytes and a checksum, and for states of a few megabytes
zarr-python takes about ten times as long as the disk.

Specification: https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

MAX_CHUNK = 32 * 2**20  # bytes; larger arrays are split along axis 0
MAX_LOG_CHUNK = 2 * 2**20  # bytes; rows of logs are read in ranges
MAX_ARRAY = 2**48  # bytes; a larger shape is implausible
MAX_NDIM = 16

FILL: dict[str, bool | int | float] = {
    "bool": False,
    **dict.fromkeys(("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"), 0),
    **dict.fromkeys(("float16", "float32", "float64"), 0.0),
}
ITEMSIZE = {
    name: 1 if name == "bool" else int("".join(filter(str.isdigit, name))) // 8 for name in FILL
}


@dataclass(frozen=True)
class StoredArray:
    """The location and the checksums of an array.

    Attributes:
        shape: its shape.
        dtype: a key of `FILL`.
        crc32c: of each chunk, in order.
        start: offset of its first chunk in the commit's file, in bytes; None if each chunk is a
            file.
        limit: bytes of a chunk; see `chunk_shape`.
    """

    shape: tuple[int, ...]
    dtype: str
    crc32c: tuple[int, ...]
    start: int | None = field(default=None, kw_only=True)
    limit: int = field(default=MAX_CHUNK, kw_only=True)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class ArraySpec(StoredArray):
    """An array as the commit's attributes describe it.

    Attributes:
        sha256: of the array's bytes in C order, in hex.
    """

    sha256: str


@lru_cache
def dtype_name(dtype: np.dtype) -> str:
    """The name of a dtype; cached, because numpy builds it on every access."""
    return dtype.name


@lru_cache(maxsize=256)
def chunk_shape(shape: tuple[int, ...], dtype: str, limit: int = MAX_CHUNK) -> tuple[int, ...]:
    """The shape of an array's chunks: the whole array, or some of its rows if it is large.

    Chunks have `limit` bytes at most, or one row.
    """
    whole = tuple(max(1, length) for length in shape)
    nbytes = math.prod(whole) * ITEMSIZE[dtype]
    if nbytes <= limit:
        return whole
    pieces = min(whole[0], -(-nbytes // limit))
    return (-(-whole[0] // pieces), *whole[1:])


def chunk_count(shape: tuple[int, ...], dtype: str, limit: int = MAX_CHUNK) -> int:
    """The number of chunks of an array; 0 for an empty array."""
    if 0 in shape:
        return 0
    return -(-shape[0] // chunk_shape(shape, dtype, limit)[0]) if shape else 1


def chunk_name(ndim: int, index: int) -> str:
    """The name of chunk `index` along axis 0."""
    return ".".join(["c", *(str(index if axis == 0 else 0) for axis in range(ndim))])


def array_document(shape: tuple[int, ...], dtype: str, limit: int = MAX_CHUNK) -> dict[str, Any]:
    """The `zarr.json` of an array."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": list(chunk_shape(shape, dtype, limit))},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": FILL[dtype],
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}}
            if ITEMSIZE[dtype] > 1
            else {"name": "bytes"},
            {"name": "crc32c"},
        ],
        "attributes": {},
        "storage_transformers": [],
    }


def group_document(attributes: dict[str, Any], arrays: Mapping[str, StoredArray]) -> dict[str, Any]:
    """The `zarr.json` of a commit with consolidated metadata, so that opening reads one file."""
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": attributes,
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": {
                name: array_document(spec.shape, spec.dtype, spec.limit)
                for name, spec in arrays.items()
            },
        },
    }
