"""Turns: which messages of a conversation a session has read, and up to which token.

A session may have read more than the conversation has, such as a reply that was interrupted and
not logged, or less, where another model has replied. A record beside the session has a line for
each turn that was completed: a digest of all messages up to its end, and the session's position.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

Message = tuple[str, str]  # a role, and a text that is not empty


def digest(messages: Sequence[Message]) -> str:
    """A digest of messages, in their order."""
    return hashlib.sha256(json.dumps(list(messages)).encode()).hexdigest()


class Turns:
    """The record of one session, in a file.

    Args:
        path: of the file, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turns: list[tuple[str, int]] = []
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            self._turns = [(name, int(at)) for name, at in map(str.split, lines)]

    def known(self, messages: Sequence[Message]) -> tuple[int, int]:
        """How many of the messages, from the first on, a session has read, and at which position.

        Returns:
            (0, 0) if it has to read all.
        """
        positions = dict(self._turns)
        for n in range(len(messages), 0, -1):
            position = positions.get(digest(messages[:n]))
            if position is not None:
                return n, position
        return 0, 0

    def add(self, messages: Sequence[Message], position: int, *, start: int) -> None:
        """Record that the messages were read, up to `position`.

        Args:
            start: where the newest of them begin; turns after it were rewound, and are forgotten.
        """
        self._turns = [(name, at) for name, at in self._turns if at <= start]
        self._turns.append((digest(messages), position))
        draft = self._path.with_suffix(".draft")
        draft.write_text("".join(f"{name} {at}\n" for name, at in self._turns), encoding="utf-8")
        os.replace(draft, self._path)
