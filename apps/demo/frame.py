"""The parts of the page that every tab uses, and what they show of a session."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import gradio as gr

from apps.demo.desk import Desk, visitor
from apps.demo.reading import strip
from apps.demo.shelf import Refused, Shelf
from apps.demo.words import message, safe
from apps.demo.work import Job, Stopped

EMPTY = message("Nothing is remembered yet: read something, and its memory appears here.")


@dataclass(frozen=True)
class Frame:
    """What stands above the tabs.

    Attributes:
        session: the name of the session that all tabs work on; standing: where it is.
        strip: its memory, in one row.
    """

    session: gr.Dropdown
    standing: gr.HTML
    strip: gr.HTML


def standing(name: str, position: int, *, saved: float | None = None) -> str:
    """Where a session is, in one line."""
    if not position:
        return f'<p class="standing">{safe(name)} has read nothing yet.</p>'
    since = f", saved {time.strftime('%Y-%m-%d %H:%M', time.localtime(saved))}" if saved else ""
    return f'<p class="standing"><b>{safe(name)}</b> has read {position:,} tokens{since}.</p>'


def stand(desk: Desk, shelf: Shelf, name: str) -> tuple[str, str]:
    """The standing of a session, and its strip, as they are on disk.

    Raises:
        Refused: not a name, or it cannot be read.
    """
    if not shelf.has(name):
        return standing(name, 0), EMPTY

    def work(job: Job) -> tuple[str, str]:
        with shelf.open(name, desk.checkpoint, readonly=True) as session:
            saved = session.saved
            line = standing(name, session.position, saved=saved.created if saved else None)
            return line, strip(session) or EMPTY

    line, picture = desk.jobs.do(work, visitor="")
    return line, picture


def choices(shelf: Shelf, name: str) -> gr.Dropdown:
    """The dropdown of sessions, with one of them chosen."""
    names = shelf.names()
    if name not in names:
        names = [name, *names]
    return gr.Dropdown(choices=names, value=name)


@contextmanager
def refusals() -> Iterator[list[str]]:
    """Collects what is to be told to the visitor when something is refused."""
    told: list[str] = []
    try:
        yield told
    except Refused as error:
        told.append(message(str(error), kind="error"))
    except ValueError as error:
        told.append(message(str(error), kind="error"))
    except Stopped:
        pass


__all__ = ["EMPTY", "Frame", "choices", "refusals", "stand", "standing", "visitor"]
