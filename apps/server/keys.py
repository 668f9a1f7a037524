"""API keys: who may use the server, and whose shelf of sessions a key opens."""

import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path

SHORTEST = 16  # characters


class Keys:
    """The keys that a server accepts.

    Args:
        owners: keys with the owners of their shelves.
    """

    def __init__(self, owners: Iterable[tuple[str, str]]) -> None:
        self._owners = [(_digest(key), owner) for key, owner in owners]

    @classmethod
    def read(cls, path: str | Path) -> "Keys":
        """Read a file with one key a line: KEY, or NAME KEY. Empty lines and # lines are skipped.

        Keys of one name share a shelf, so that a key can be replaced. The shelf of a key without a
        name is named by its hash.

        Raises:
            ValueError: there is no key, or a line is not one; the message names the line only.
            OSError: the file cannot be read.
        """
        owners: dict[str, str] = {}
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            *names, key = words
            named = len(names) < 2 and all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", n) for n in names)
            if not named or len(key) < SHORTEST or not key.isascii() or key in owners:
                raise ValueError(
                    f"{path}, line {number}; allowed: KEY or NAME KEY, the name of at most 64 "
                    f"letters, digits, '_', '-', the key of at least {SHORTEST} ASCII characters, "
                    "each key once"
                )
            owners[key] = names[0] if names else f"~{_digest(key).hex()[:32]}"
        if not owners:
            raise ValueError(f"{path} has no key; allowed: one a line, KEY or NAME KEY")
        return cls(owners.items())

    def owner(self, key: str) -> str | None:
        """Whose key it is; None if it is none. The time does not depend on which or how close."""
        given, found = _digest(key), None
        for digest, owner in self._owners:
            if hmac.compare_digest(digest, given):
                found = owner
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
