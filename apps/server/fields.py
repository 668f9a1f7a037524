"""Fields: the fields of a JSON object, taken one by one; what nobody took is refused by name.

A field that is null counts as absent, as OpenAI's clients send it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from apps.server.errors import ApiError, refused


class Fields:
    """The fields of a request.

    Args:
        values: the JSON object.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._left = dict(values)
        self._known: list[str] = []

    def take(self, name: str) -> Any:
        """The value of a field; None if it is absent."""
        self._known.append(name)
        return self._left.pop(name, None)

    def text(self, name: str) -> str | None:
        """A string; lone surrogates, which JSON can write and UTF-8 cannot, become "?"."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise refused(name, value, "a string")
        return None if value is None else clean(value)

    def texts(self, name: str, *, most: int) -> list[str]:
        """A string or a list of strings; absent is an empty list."""
        value = self.take(name)
        values = [] if value is None else [value] if isinstance(value, str) else value
        fits = isinstance(values, list) and len(values) <= most
        if not fits or not all(isinstance(each, str) for each in values):
            raise refused(name, value, f"a string, or a list of at most {most} strings")
        return [clean(each) for each in values]

    def whole(self, name: str, default: int, *, least: int = 0, most: int) -> int:
        """A whole number from `least` to `most`."""
        value = self.take(name)
        if value is None:
            return default
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and value % 1 == 0
        if not good or not least <= value <= most:
            raise refused(name, value, f"a whole number from {least} to {most:,}")
        return int(value)

    def optional_whole(self, name: str, *, least: int = 0, most: int) -> int | None:
        """As `whole`; None if it is absent."""
        if self._left.get(name) is None:
            self.take(name)
            return None
        return self.whole(name, 0, least=least, most=most)

    def number(self, name: str, default: float) -> float:
        """A number; whoever uses it checks its range."""
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise refused(name, value, "a number")
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        """True or false."""
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise refused(name, value, "true or false")
        return default if value is None else value

    def part(self, name: str) -> "Fields | None":
        """An object within; the caller ends it."""
        value = self.take(name)
        if value is not None and not isinstance(value, dict):
            raise refused(name, value, "an object")
        return None if value is None else Fields(value)

    def ignore(self, *names: str) -> None:
        """Accept fields that change nothing here, whatever they say."""
        for name in names:
            self.take(name)

    def neutral(self, **allowed: Sequence[Any]) -> None:
        """Accept fields with the values that change nothing; others would not be obeyed."""
        for name, values in allowed.items():
            value = self.take(name)
            if value is not None and value not in values:
                shown = " or ".join(["null", *map(repr, values)])
                raise refused(name, value, f"{shown}; this server does not support it")

    def end(self) -> None:
        """Refuse what was not taken.

        Raises:
            ApiError: names the first.
        """
        for name in self._left:
            known = ", ".join(self._known)
            raise ApiError(400, f"unknown field {name!r:.100}; allowed: {known}", param=name)


def clean(text: str) -> str:
    """Text without lone surrogates."""
    return text.encode("utf-8", "replace").decode("utf-8")
