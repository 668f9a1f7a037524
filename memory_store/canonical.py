"""JSON that hashes the same everywhere, and checksums.

A document is canonical when its keys are sorted, nothing is spaced and everything is ASCII: equal
values are equal bytes, so their sha256 can stand for them.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import google_crc32c
import numpy as np

from memory_store.errors import Corrupt

ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
)
MAX_DEPTH = 64  # of nested lists and mappings; far above any state, far below Python's stack


def canonical(value: Any) -> bytes:
    """`value`, which `plain` has passed, as canonical JSON."""
    return ENCODER.encode(value).encode("ascii")


def parse(data: bytes, path: object) -> dict[str, Any]:
    """The mapping that a JSON file holds.

    Raises:
        Corrupt: not JSON, not a mapping, or nested without sense.
    """

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):  # readers disagree on which of them counts
            raise ValueError("a key is there twice")
        return found

    try:
        value = json.loads(data, parse_constant=refuse, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # JSON and Unicode errors are ValueErrors
        raise Corrupt(
            f"{path}: damaged, not JSON any more ({error}). Restore the file from a copy."
        ) from error
    if not isinstance(value, dict):
        raise Corrupt(f"{path}: damaged, holds no JSON object. Restore the file from a copy.")
    return value


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """`value` as JSON keeps it: tuples become lists, everything else stays what it is.

    Raises:
        ValueError: `where` in it something is that JSON would lose or change.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"{where} is nested deeper than {MAX_DEPTH} levels")
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}; JSON has finite numbers only")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise ValueError(f"{where} has the key {key!r}; keys must be strings")
        return {key: plain(item, f"{where}[{key!r}]", depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise ValueError(
        f"{where} is a {type(value).__name__}; allowed are None, bool, int, float, str, "
        "lists and mappings of them (arrays belong in `arrays`)"
    )


def sha256(data: bytes) -> str:
    """sha256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def crc32c(data: bytes | np.ndarray, start: int = 0) -> int:
    """crc32c of bytes, or of a C-contiguous array's bytes, going on from `start`."""
    return int(google_crc32c.extend(start, data))


def sealed(document: dict[str, Any]) -> bytes:
    """`document` with its own crc32c added, as the bytes of a file."""
    return canonical({**document, "crc32c": crc32c(canonical(document))})


def unsealed(document: dict[str, Any], path: object) -> dict[str, Any]:
    """A document that `sealed` made, without its crc32c.

    Raises:
        Corrupt: the crc32c is missing or does not fit the rest.
    """
    rest = {key: value for key, value in document.items() if key != "crc32c"}
    try:
        fits = document.get("crc32c") == crc32c(canonical(rest))
    except (ValueError, RecursionError):  # 1e999 reads as infinity
        fits = False
    if not fits:
        raise Corrupt(f"{path}: damaged, its crc32c does not fit. Restore the file from a copy.")
    return rest
