"""Canonical JSON, checksums, and checked access to untrusted mappings.

Canonical JSON has sorted keys, no whitespace and ASCII characters only: equal values have equal
bytes, so a sha256 identifies them. `Fields` checks every value of an untrusted mapping on access.
"""

import hashlib
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import google_crc32c
import numpy as np

from memory_store.errors import Corrupt

ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
)
MAX_TIME = 2**37  # seconds since 1970, in the year 6325; the calendars of languages end in 9999
LIMIT = 2**53  # some JSON readers lose digits of larger integers
MAX_DEPTH = 64  # levels of nesting; far more than any state has, far less than Python's stack


def canonical(value: Any) -> bytes:
    """The canonical JSON of a value that `plain` returned."""
    return ENCODER.encode(value).encode("ascii")


def parse(data: bytes, path: object) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        Corrupt: not JSON, not a mapping, nested too deeply, or a key occurs twice.
    """

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a JSON number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) < len(pairs):  # readers disagree on which of the two is valid
            raise ValueError("a key occurs twice")
        return mapping

    try:
        value = json.loads(data, parse_constant=refuse, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # JSON and Unicode errors are ValueErrors
        raise Corrupt(
            f"{path}: damaged, not JSON ({error}). Restore the file from a copy."
        ) from error
    if not isinstance(value, dict):
        raise Corrupt(f"{path}: damaged, not a JSON object. Restore the file from a copy.")
    return value


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """`value` as JSON preserves it: tuples become lists, everything else stays unchanged.

    Args:
        where: the name of `value` in error messages.

    Raises:
        ValueError: JSON would lose or change a part of `value`; names the part.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"{where} is nested deeper than the allowed {MAX_DEPTH} levels")
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}; allowed: finite numbers")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise ValueError(f"{where} has the key {key!r}; allowed: strings")
        return {key: plain(item, f"{where}[{key!r}]", depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise ValueError(
        f"{where} is a {type(value).__name__}; allowed: None, bool, int, float, str, and lists and "
        "mappings of them (arrays belong in `arrays`)"
    )


def sha256(data: bytes) -> str:
    """sha256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def crc32c(data: bytes | np.ndarray, start: int = 0) -> int:
    """crc32c of bytes or of a C-contiguous array, continued from the checksum `start`."""
    return int(google_crc32c.extend(start, data))


def sealed(document: dict[str, Any]) -> bytes:
    """The bytes of `document` with its crc32c added."""
    return canonical({**document, "crc32c": crc32c(canonical(document))})


def unsealed(document: dict[str, Any], path: object) -> dict[str, Any]:
    """A document of `sealed` without its crc32c.

    Raises:
        Corrupt: the crc32c is missing or does not match the document.
    """
    rest = {key: value for key, value in document.items() if key != "crc32c"}
    try:
        fits = document.get("crc32c") == crc32c(canonical(rest))
    except (ValueError, RecursionError):  # 1e999 reads as infinity
        fits = False
    if not fits:
        raise Corrupt(f"{path}: damaged, its crc32c does not match. Restore the file from a copy.")
    return rest


def now() -> float:
    """Seconds since 1970, rounded to milliseconds, so that every stored digit is significant."""
    return min(max(0.0, round(time.time(), 3)), MAX_TIME)  # an unset clock may be before 1970


class Fields:
    """An untrusted mapping from a file; `path` names the file in error messages."""

    def __init__(self, value: Any, path: object, key: str = "") -> None:
        self.path = path
        self.key = key
        if not isinstance(value, dict):
            raise self.corrupt("", "is not a mapping")
        self.value: dict[str, Any] = value

    def corrupt(self, key: str, problem: str) -> Corrupt:
        """The error for an invalid value; names the file and the key."""
        name = ".".join(part for part in (self.key, key) if part) or "the document"
        return Corrupt(f"{self.path}: {name} {problem}. Restore the file from a copy.")

    def integer(self, key: str, *, low: int = 0, high: int = LIMIT) -> int:
        """An integer in [low, high]."""
        value = self.value.get(key)
        if type(value) is not int or not low <= value <= high:
            raise self.corrupt(key, f"should be an integer from {low} to {high}")
        return value

    def seconds(self, key: str) -> float:
        """A time, in seconds since 1970."""
        value: Any = self.value.get(key)
        if type(value) not in (int, float) or not 0 <= value <= MAX_TIME:
            raise self.corrupt(key, f"should be a time from 0 to {MAX_TIME} seconds")
        return float(value)

    def text(self, key: str, pattern: re.Pattern[str]) -> str:
        """A string that `pattern` matches completely."""
        value = self.value.get(key)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self.corrupt(key, f"should be text like {pattern.pattern}")
        return value

    def integers(self, key: str, *, longest: int, high: int = LIMIT) -> tuple[int, ...]:
        """A list of at most `longest` integers in [0, high]."""
        value = self.value.get(key)
        if (
            not isinstance(value, list)
            or len(value) > longest
            or not all(type(item) is int and 0 <= item <= high for item in value)
        ):
            raise self.corrupt(key, f"should be at most {longest} integers from 0 to {high}")
        return tuple(value)

    def mapping(self, key: str) -> "Fields":
        """A nested mapping."""
        return Fields(self.value.get(key), self.path, f"{self.key}.{key}" if self.key else key)

    def optional(self, key: str) -> "Fields | None":
        """A nested mapping, or None for null."""
        if key in self.value and self.value[key] is None:
            return None
        return self.mapping(key)

    def items(self, pattern: re.Pattern[str]) -> Iterator[tuple[str, "Fields"]]:
        """The nested mappings by name; every name matches `pattern`."""
        for name in self.value:
            if not pattern.fullmatch(name):
                raise self.corrupt(name[:80], f"should have a name like {pattern.pattern}")
            yield name, self.mapping(name)

    def list(self, key: str, *, longest: int) -> Iterator["Fields"]:
        """The mappings in a list of at most `longest` items."""
        value = self.value.get(key)
        if not isinstance(value, list) or len(value) > longest:
            raise self.corrupt(key, f"should be a list of at most {longest}")
        for i, item in enumerate(value):
            yield Fields(item, self.path, f"{self.key}.{key}[{i}]" if self.key else f"{key}[{i}]")

    def strings(self, key: str) -> dict[str, str]:
        """A mapping from strings to strings."""
        value = self.mapping(key).value
        if not all(isinstance(item, str) for item in value.values()):
            raise self.corrupt(key, "should map strings to strings")
        return dict(value)
