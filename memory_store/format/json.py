"""JSON that hashes the same everywhere, checksums, and mappings whose every value is checked.

A document is canonical when its keys are sorted, nothing is spaced and everything is ASCII: equal
values are equal bytes, so their sha256 can stand for them. `Fields` reads a mapping that nobody has
vouched for.
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
LIMIT = 2**53  # above it some readers of JSON lose digits
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


def now() -> float:
    """Seconds since 1970, to the millisecond: every digit counts, so every damaged one shows."""
    return max(0.0, round(time.time(), 3))  # a clock that was never set may say less


class Fields:
    """A mapping from a file, with the file's name for the error messages."""

    def __init__(self, value: Any, path: object, key: str = "") -> None:
        self.path = path
        self.key = key
        if not isinstance(value, dict):
            raise self.corrupt("", "is not a mapping")
        self.value: dict[str, Any] = value

    def corrupt(self, key: str, problem: str) -> Corrupt:
        """The error that says which value of which file is wrong."""
        name = ".".join(part for part in (self.key, key) if part) or "the document"
        return Corrupt(f"{self.path}: {name} {problem}. Restore the file from a copy.")

    def integer(self, key: str, *, low: int = 0, high: int = LIMIT) -> int:
        """An integer in [low, high]."""
        value = self.value.get(key)
        if type(value) is not int or not low <= value <= high:
            raise self.corrupt(key, f"should be an integer from {low} to {high}")
        return value

    def seconds(self, key: str) -> float:
        """A time in seconds since 1970."""
        value = self.value.get(key)
        if not isinstance(value, int | float) or not 0 <= value <= LIMIT:
            raise self.corrupt(key, "should be a time in seconds")
        return float(value)

    def text(self, key: str, pattern: re.Pattern[str]) -> str:
        """A string that matches `pattern` from end to end."""
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
        """A mapping."""
        return Fields(self.value.get(key), self.path, f"{self.key}.{key}" if self.key else key)

    def optional(self, key: str) -> "Fields | None":
        """A mapping, or None where the file says null."""
        if key in self.value and self.value[key] is None:
            return None
        return self.mapping(key)

    def items(self, pattern: re.Pattern[str]) -> Iterator[tuple[str, "Fields"]]:
        """The mappings inside this one, by name; names match `pattern`."""
        for name in self.value:
            if not pattern.fullmatch(name):
                raise self.corrupt(name[:80], f"should have a name like {pattern.pattern}")
            yield name, self.mapping(name)

    def list(self, key: str, *, longest: int) -> Iterator["Fields"]:
        """The mappings in a list of at most `longest`."""
        value = self.value.get(key)
        if not isinstance(value, list) or len(value) > longest:
            raise self.corrupt(key, f"should be a list of at most {longest}")
        for i, item in enumerate(value):
            yield Fields(item, self.path, f"{self.key}.{key}[{i}]" if self.key else f"{key}[{i}]")

    def strings(self, key: str) -> dict[str, str]:
        """A mapping from text to text."""
        value = self.mapping(key).value
        if not all(isinstance(item, str) for item in value.values()):
            raise self.corrupt(key, "should map text to text")
        return dict(value)
