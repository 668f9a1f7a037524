"""The header of a GGUF file: metadata and places of tensors, read without trusting any number.

Format: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3, little-endian. The reader of the
`gguf` package trusts counts and lengths, and makes an object per element of an array.
"""

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from streamlm.checkpoints.json_file import require_regular

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER_LIMIT = 128 << 20  # bytes; vocabularies of 256,000 tokens have 15 MB
ENTRIES = 1 << 16  # tensors, and metadata
ELEMENTS = 4 << 20  # of all arrays
NAME_LENGTH, DIMENSIONS = 65535, 4
# Types of tensors: code → name, numbers per block, bytes per block.
TYPES = {
    **{0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2)},
    **{2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24)},
    **{8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110)},
    **{12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210)},
}
SCALARS = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?"},
    **{10: "<u8", 11: "<i8", 12: "<f8"},
}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file.

    Attributes:
        shape: outermost dimension first.
        kind: name of its type; see TYPES.
        block: (numbers, bytes) of a block.
        offset, n_bytes: in the file.
    """

    shape: tuple[int, ...]
    kind: str
    block: tuple[int, int]
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class Header:
    """Metadata (scalars, strings, lists of strings, arrays of numbers) and tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, Place]


def read_header(path: Path) -> Header:
    """Read and check the header of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no GGUF file, damaged, or of a kind that is not supported.
    """
    size = require_regular(path)
    with open(path, "rb") as file:
        if file.read(4) != MAGIC:
            raise ValueError(f"{path} is no GGUF file: it does not begin with {MAGIC!r}")
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data, size).header()
        except (ValueError, struct.error) as error:
            raise ValueError(f"{path} is damaged: {error}") from None


class _Reader:
    """A cursor over the bytes of a header; every step is checked against its end."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data, self.size = data, size
        self.end = min(size, HEADER_LIMIT)
        self.at, self.elements = len(MAGIC), 0

    def header(self) -> Header:
        version = self.number("<I")
        if version not in VERSIONS:
            raise ValueError(f"version {version:,}; allowed: 2 or 3, little-endian")
        n_tensors, n_fields = self.number("<Q"), self.number("<Q")
        for what, count in (("tensors", n_tensors), ("fields", n_fields)):
            if count > ENTRIES:
                raise ValueError(f"{count:,} {what}; allowed: at most {ENTRIES:,}")
        metadata: dict[str, Any] = {}
        for _ in range(n_fields):
            name = self.text(NAME_LENGTH)
            if name in metadata:
                raise ValueError(f"field {name!r} stands twice")
            metadata[name] = self.value(self.number("<I"), name)
        described: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(n_tensors):
            name = self.text(NAME_LENGTH)
            if name in described:
                raise ValueError(f"tensor {name!r} stands twice")
            n_dims = self.number("<I")
            if not 1 <= n_dims <= DIMENSIONS:
                raise ValueError(f"tensor {name!r} has {n_dims:,} dimensions; allowed: 1 to 4")
            shape = tuple(self.number("<Q") for _ in range(n_dims))[::-1]
            described[name] = shape, self.number("<I"), self.number("<Q")
        return Header(metadata, self._places(described, _alignment(metadata)))

    def _places(
        self, described: dict[str, tuple[tuple[int, ...], int, int]], alignment: int
    ) -> dict[str, Place]:
        start = -(-self.at // alignment) * alignment
        found: dict[str, Place] = {}
        for name, (shape, code, offset) in described.items():
            kind, numbers, n_bytes = TYPES.get(code) or _refuse_type(name, code)
            if offset % alignment:
                raise ValueError(f"tensor {name!r} is not aligned to {alignment} bytes")
            if shape[-1] % numbers:
                raise ValueError(f"tensor {name!r}: rows of {shape[-1]:,} numbers in {kind}")
            whole = prod(shape) // numbers * n_bytes
            if not whole or start + offset + whole > self.size:
                raise ValueError(
                    f"tensor {name!r} has {whole:,} bytes at {start + offset:,}; "
                    f"the file has {self.size:,}"
                )
            found[name] = Place(shape, kind, (numbers, n_bytes), start + offset, whole)
        at, before = start, ""
        for name, place in sorted(found.items(), key=lambda item: item[1].offset):
            if place.offset < at:
                raise ValueError(f"tensors {before!r} and {name!r} overlap")
            at, before = place.offset + place.n_bytes, name
        return found

    def take(self, n: int) -> int:
        """Go n bytes on; returns where they begin."""
        if n > self.end - self.at:
            cut = "the file" if self.end == self.size else f"a header of {self.end:,} bytes"
            raise ValueError(f"{n:,} bytes at {self.at:,} lie beyond the end of {cut}")
        at, self.at = self.at, self.at + n
        return at

    def number(self, kind: str) -> int:
        found: int = struct.unpack_from(kind, self.data, self.take(struct.calcsize(kind)))[0]
        return found

    def text(self, limit: int | None = None) -> str:
        length = self.number("<Q")
        if limit is not None and length > limit:
            raise ValueError(f"a name of {length:,} bytes; allowed: at most {limit:,}")
        at = self.take(length)
        return self.data[at : at + length].decode()

    def value(self, code: int, name: str) -> Any:
        if code == STRING:
            return self.text()
        if code == ARRAY:
            return self.array(name)
        return self.numbers(code, 1, name)[0].item()

    def array(self, name: str) -> Any:
        code, count = self.number("<I"), self.number("<Q")
        self.elements += count
        if self.elements > ELEMENTS:
            raise ValueError(f"arrays of {self.elements:,} elements; allowed: {ELEMENTS:,}")
        if code == STRING:
            return [self.text() for _ in range(count)]
        return self.numbers(code, count, name)

    def numbers(self, code: int, count: int, name: str) -> Any:
        if code not in SCALARS:
            raise ValueError(f"field {name!r} is of type {code}; allowed: 0 to 12, not nested")
        kind = np.dtype(SCALARS[code])
        at = self.take(count * kind.itemsize)
        return np.frombuffer(self.data[at : self.at], dtype=kind)


def _alignment(metadata: dict[str, Any]) -> int:
    given = metadata.get("general.alignment", 32)
    if type(given) is not int or given not in [1 << power for power in range(3, 21)]:
        raise ValueError(f"general.alignment = {str(given)[:40]}; allowed: 8, 16, 32, …, 1048576")
    return given


def _refuse_type(name: str, code: int) -> tuple[str, int, int]:
    try:
        from gguf import GGMLQuantizationType

        kind = GGMLQuantizationType(code).name
    except (ImportError, ValueError):
        kind = f"number {code}"
    allowed = ", ".join(kind for kind, _, _ in TYPES.values())
    raise ValueError(f"tensor {name!r} is of type {kind}; allowed: {allowed}")


def dequantizer() -> Callable[[np.ndarray[Any, Any], str], np.ndarray[Any, Any]]:
    """`gguf.quants.dequantize` by name of the type: rows of blocks → rows of float32.

    Raises:
        ValueError: the package `gguf` is not installed.
    """
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError:
        raise ValueError(
            "quantized GGUF files need the package gguf: pip install 'streamlm[pretrained]'"
        ) from None
    return lambda rows, kind: dequantize(rows, GGMLQuantizationType[kind])
