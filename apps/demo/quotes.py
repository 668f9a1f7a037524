"""Quotes: what recall has put before the messages of chats, so that they can be shown as typed.

The stream holds a passage as part of the user's turn. A snapshot knows the passages of the newest
message only; those of earlier ones are kept here while the server runs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from apps.demo.shelf import Shelf
from memory_store import NotFound

if TYPE_CHECKING:
    from streamlm.sessions.session import Session

KEPT_SESSIONS, KEPT_QUOTES = 256, 64  # the most recent ones, and those of each

Talk = list[dict[str, str]]  # see `Quotes.transcript`


class Quotes:
    """The quotes of the sessions of one server."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], list[str]] = OrderedDict()

    def transcript(self, session: Session, shelf: Shelf, name: str, *, tokens: int) -> Talk:
        """`Session.transcript`; "recalled" is what was put before a message, where it is known."""
        place = (shelf.folder, name)
        kept = self._kept.get(place, [])
        quote = _newest(session)
        if quote and quote not in kept:
            kept = [*kept, quote][-KEPT_QUOTES:]
        if kept:
            self._kept[place] = kept
            self._kept.move_to_end(place)
        while len(self._kept) > KEPT_SESSIONS:
            self._kept.popitem(last=False)
        return [_split(turn, kept) for turn in session.transcript(tokens=tokens)]


def _newest(session: Session) -> str:
    """What was put before the newest prompt; "" if nothing was, or it was deleted since."""
    try:
        spans = sorted(session.recalled)
        return "\n\n".join(session.text(start, stop).strip() for start, stop, _ in spans)
    except NotFound:
        return ""


def _split(turn: dict[str, str], quotes: Sequence[str]) -> dict[str, str]:
    """A turn whose content is what was typed, if one of the quotes stands before it."""
    content = turn["content"].lstrip()
    found = [quote for quote in quotes if content.startswith(f"{quote}\n\n")]
    if turn["role"] != "user" or not found:
        return turn
    quote = max(found, key=len)
    return {**turn, "content": content[len(quote) :].strip(), "recalled": quote}
