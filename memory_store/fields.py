"""Reading a JSON mapping that nobody has vouched for: every value is checked as it is taken."""

import re
import time
from collections.abc import Iterator
from typing import Any

from memory_store.errors import Corrupt

LIMIT = 2**53  # above it some readers of JSON lose digits


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
