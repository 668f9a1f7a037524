"""Texts whose reading was interrupted, so that a reloaded page can offer to go on."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from apps.demo.example import book
from apps.demo.shelf import Shelf

MOST_TEXTS = 16  # kept while the server runs, the most recent ones


@dataclass(frozen=True)
class UnfinishedText:
    """A text that a session has not read to its end, and what it is called."""

    label: str
    text: str


class Unfinished:
    """The unfinished texts of one server. The bundled book needs no keeping."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], UnfinishedText] = OrderedDict()

    def keep(self, shelf: Shelf, name: str, label: str, text: str) -> None:
        """A session begins to read a text; without a label, it goes on with the one kept."""
        kept = self._kept.pop((shelf.folder, name), None)
        if not label and kept is not None:
            label = kept.label
        self._kept[shelf.folder, name] = UnfinishedText(label or "the bundled book", text)
        while len(self._kept) > MOST_TEXTS:
            self._kept.popitem(last=False)

    def forget(self, shelf: Shelf, name: str) -> None:
        """A session has read its text to the end."""
        self._kept.pop((shelf.folder, name), None)

    def of(self, shelf: Shelf, name: str) -> UnfinishedText | None:
        """The text that a session can go on reading; None if there is none.

        Raises:
            Refused: not a valid name, or the session cannot be read.
        """
        read = _read_of_a_text(shelf, name)
        if read is None:
            return None
        n_bytes, digest = read
        texts = [UnfinishedText("the bundled book", book())]
        if (kept := self._kept.get((shelf.folder, name))) is not None:
            texts.insert(0, kept)
        for each in texts:
            begins = each.text.encode("utf-8", "replace")[:n_bytes]
            if hashlib.sha256(begins).hexdigest() == digest:
                return each
        return None


def _read_of_a_text(shelf: Shelf, name: str) -> tuple[int, str] | None:
    """How many bytes of an unfinished text a session has read, and their sha256."""
    history = shelf.history(name) if shelf.has(name) else []
    store = shelf.store(name) if history else None
    if store is None:
        return None
    with shelf.refusing(name):
        reading = store.attributes_of(history[-1]).get("reading")
    if not isinstance(reading, dict) or not reading.get("n_bytes"):
        return None
    return int(reading["n_bytes"]), str(reading.get("digest"))
