"""Tensors of safetensors files, by memory map. Headers are checked before anything is mapped."""

from collections.abc import Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from streamlm.checkpoints.json_file import parse_json, require_regular
from streamlm.checkpoints.stored import DTYPES, StoredTensor

METADATA = "__metadata__"
HEADER_LIMIT = 16 << 20  # bytes; a model of 126 layers has 150,000


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name. Data are mapped when a tensor is loaded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged; says how.
    """
    size = require_regular(path)
    try:
        header, start = _header(path, size)
        header = {name: facts for name, facts in header.items() if name != METADATA}
        entries = {name: _entry(name, facts, size - start) for name, facts in header.items()}
        _check_places(entries, size - start)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    opened = cache(lambda: _open(path))

    def stored(name: str, entry: "_Entry") -> StoredTensor:
        precision, shape, begin, end = entry

        def load(dtype: torch.dtype | None) -> Tensor:
            return _get(opened(), path, name, dtype)

        return StoredTensor(name, shape, precision, end - begin, load)

    return {name: stored(name, entry) for name, entry in entries.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a file, texts by name.

    Raises:
        FileNotFoundError, ValueError: as `read_tensors`.
    """
    try:
        found = _header(path, require_regular(path))[0].get(METADATA, {})
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    good = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    return dict(found) if good else {}


_Entry = tuple[str, tuple[int, ...], int, int]  # precision, shape, begin, end


def _header(path: Path, size: int) -> tuple[Mapping[str, Any], int]:
    """Entries by name, and the offset of the data."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"its header has {length:,} bytes, the file {size:,}")
        if length > HEADER_LIMIT:
            raise ValueError(f"its header has {length:,} bytes; allowed: at most {HEADER_LIMIT:,}")
        header = parse_json(file.read(length))
    return header, 8 + length


def _entry(name: str, facts: Any, n_bytes: int) -> _Entry:
    if not isinstance(facts, dict) or set(facts) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of tensor {name!r} is malformed")
    precision, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
    if not isinstance(precision, str) or precision not in DTYPES:
        raise ValueError(f"tensor {name!r} has dtype {precision!r}; allowed: {', '.join(DTYPES)}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"tensor {name!r} has {numbers!r} for integers"[:200])
    if len(offsets) != 2 or len(shape) > 8 or not offsets[0] <= offsets[1] <= n_bytes:
        raise ValueError(f"tensor {name!r} lies at {offsets!r} of {n_bytes:,} bytes"[:200])
    begin, end = offsets
    wanted = prod(shape) * DTYPES[precision].itemsize
    if end - begin != wanted:
        raise ValueError(f"tensor {name!r} has {end - begin:,} bytes; its shape has {wanted:,}")
    return precision, tuple(shape), begin, end


def _check_places(entries: Mapping[str, _Entry], n_bytes: int) -> None:
    """Every byte of the data belongs to one tensor."""
    at = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != at:
            raise ValueError(f"tensor {name!r} begins at byte {begin:,}; expected: {at:,}")
        at = end
    if at != n_bytes:
        raise ValueError(f"its tensors end at byte {at:,} of {n_bytes:,}")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _get(file: Any, path: Path, name: str, dtype: torch.dtype | None) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return tensor.to(dtype or tensor.dtype)
