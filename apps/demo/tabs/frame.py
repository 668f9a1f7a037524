"""The parts of the page that every tab uses, and what they show of a session."""

import time
from dataclasses import dataclass

import gradio as gr

from apps.demo.app_state import Desk
from apps.demo.jobs import Stopped
from apps.demo.render.text_html import message, safe
from apps.demo.shelf import Refused, Shelf

EMPTY = message("Nothing is remembered yet: read something, and its memory appears here.")


@dataclass(frozen=True)
class Frame:
    """What stands above the tabs.

    Attributes:
        session: the name of the session that all tabs work on; standing: where it is.
        strip: its memory, in one row; layers: with a row for each layer, among the tabs.
    """

    session: gr.Dropdown
    standing: gr.HTML
    strip: gr.HTML
    layers: gr.HTML


def standing(name: str, position: int, *, saved: float | None = None) -> str:
    """Where a session is, in one line."""
    if not position:
        return f'<p class="standing">{safe(name)} has read nothing yet.</p>'
    since = f", saved {time.strftime('%Y-%m-%d %H:%M', time.localtime(saved))}" if saved else ""
    return f'<p class="standing"><b>{safe(name)}</b> has read {position:,} tokens{since}.</p>'


def stand(shelf: Shelf, name: str) -> str:
    """Where a session is on disk, in one line.

    Raises:
        Refused: not a name, or it cannot be read.
    """
    head = shelf.history(name)[-1] if shelf.has(name) else None
    return standing(name, head.position, saved=head.created) if head else standing(name, 0)


def strip_of(desk: Desk, shelf: Shelf, name: str, *, visitor: str) -> str:
    """The memory of a session as it is on disk, in one row.

    Raises:
        Refused: as `stand`.
    """
    seen = desk.look(shelf, name, visitor=visitor)
    return EMPTY if seen is None else seen.picture(layers=False)


def choices(shelf: Shelf, name: str) -> gr.Dropdown:
    """The dropdown of sessions, with one of them chosen."""
    names = shelf.names()
    if name not in names:
        names = [name, *names]
    return gr.Dropdown(choices=names, value=name)


def optional(label: str, empty: str, *, value: str = "") -> gr.Textbox:
    """A field for a whole number that may be left empty, which means `empty`."""
    return gr.Textbox(value, label=label, placeholder=empty, max_lines=1, min_width=120)


def number(text: str, what: str) -> int | None:
    """What stands in an `optional` field, None if nothing does.

    Raises:
        ValueError: something else than a whole number.
    """
    cleaned = (text or "").replace(",", "").strip()
    if not cleaned:
        return None
    if not cleaned.isdecimal() or len(cleaned) > 18:
        raise ValueError(f"{what} {text[:40]!r}; allowed: a whole number, or nothing")
    return int(cleaned)


class refusals:
    """Collects what is to be told to the visitor when something is refused."""

    def __init__(self) -> None:
        self._told: list[str] = []

    def __enter__(self) -> list[str]:
        return self._told

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, (Refused, ValueError)):
            self._told.append(message(str(error), kind="error"))
        return isinstance(error, (Refused, ValueError, Stopped))
