"""What all tabs share: the components above them, common fields, and error messages."""

import functools
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from apps.demo.app_state import QUICK, AppState, visitor_id
from apps.demo.example import example_html
from apps.demo.recalling import MAX_PASSAGES
from apps.demo.render.text_html import escape, message
from apps.demo.shelf import Refused, Shelf
from streamlm.engine import Busy, Cancelled

NOTHING = gr.skip()
LOG = logging.getLogger(__name__)
FAILED = "That failed for a reason that the server's log tells. What was saved before is kept."
SHOWN = (Refused, ValueError, OverflowError, Busy)  # errors that visitors see; int(inf) overflows
EMPTY_MEMORY = message("The memory is empty. Read something to fill it.")


@dataclass
class Chosen:
    """The session that a page shows, for events that run while another may be chosen."""

    session: str = ""


@dataclass(frozen=True)
class Frame:
    """The components that every tab may update.

    Attributes:
        session: the name of the current session; position: how far it has read, as a sentence.
        model: its model, which can be chosen while it has read nothing.
        strip: its memory in one row; layers: its memory by layer, on the Remember tab.
        viewed: the session whose memory was viewed last.
        chosen: the `Chosen` of the page.
    """

    session: gr.Dropdown
    model: gr.Dropdown
    position: gr.HTML
    strip: gr.HTML
    layers: gr.HTML
    viewed: gr.State
    chosen: gr.State


def position_html(name: str, position: int, *, saved: float | None = None) -> str:
    """How far a session has read, and when it was saved (seconds since 1970)."""
    if not position:
        return f'<p class="position">{escape(name)} has read nothing yet.</p>'
    since = f", saved {time.strftime('%Y-%m-%d %H:%M', time.localtime(saved))}" if saved else ""
    return f'<p class="position"><b>{escape(name)}</b> has read {position:,} tokens{since}.</p>'


def saved_position_html(shelf: Shelf, name: str) -> str:
    """How far a session has read, as saved.

    Raises:
        Refused: not a valid name, or the session cannot be read.
    """
    head = shelf.history(name)[-1] if shelf.has(name) else None
    if head is None:
        return position_html(name, 0)
    return position_html(name, head.position, saved=head.created)


def saved_strip_html(app: AppState, shelf: Shelf, name: str, *, visitor: str) -> str:
    """The saved memory of a session as a narrow strip.

    Raises:
        Refused: not a valid name, or the session cannot be read.
    """
    if not shelf.has(name):
        return example_html()
    view = app.memory_view(shelf, name, visitor=visitor)
    return EMPTY_MEMORY if view is None else view.strip_html()


def then_memory(app: AppState, frame: Frame, event: Any, *, layers: bool = False) -> None:
    """Draw the memory anew after an event has ended: with a large model it takes seconds.

    Args:
        layers: also on the Remember tab.
    """

    def view(name: str, request: gr.Request) -> str:
        with collect_errors():
            shelf, visitor = app.shelf(request), visitor_id(request)
            app.memory_view(shelf, name, visitor=visitor, gives_way=True)
            return name
        return ""

    def show(name: str, viewed: str, request: gr.Request) -> Any:
        with collect_errors():
            shelf, visitor = app.shelf(request), visitor_id(request)
            # Another session may have been chosen meanwhile.
            if name == viewed and (found := app.memory_view(shelf, name, visitor=visitor)):
                strip = found.strip_html()
                return [strip, found.svg()] if layers else strip
        return [gr.skip(), gr.skip()] if layers else gr.skip()

    hidden: dict[str, Any] = {**QUICK, "api_visibility": "private", "show_progress": "hidden"}
    outputs = [frame.strip, frame.layers] if layers else [frame.strip]
    viewed = event.then(view, frame.session, frame.viewed, **hidden)
    viewed.then(show, [frame.session, frame.viewed], outputs, **hidden)


def cancels_jobs(app: AppState, stop: gr.Button, status: gr.HTML) -> None:
    """Let a button cancel the visitor's jobs.

    The browser itself says "Stopping…": said by the server, it could come after the last word of
    the job, and stay.
    """

    def cancel(request: gr.Request) -> Any:
        if app.jobs.cancel(visitor_id(request)):
            return gr.skip()
        return message("There was nothing to stop.")

    private: dict[str, Any] = {"queue": False, "api_visibility": "private"}
    stop.click(None, None, status, js=f"() => {json.dumps(message('Stopping…'))}", **private)
    stop.click(cancel, None, status, **private)


def cumulative(events: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Let every update of an event repeat what the ones before it have set.

    A browser that is given two updates at once shows the second only. Fields that visitors type in
    must not be among the outputs: what they type would be overwritten.
    """

    @functools.wraps(events)
    def all_of_them(*inputs: Any) -> Iterator[Any]:
        shown: list[Any] = []
        for values in events(*inputs):
            before = shown or [NOTHING] * len(values)
            shown = [
                old if new == NOTHING else new for old, new in zip(before, values, strict=True)
            ]
            # Copies: Gradio takes updates apart.
            yield tuple(dict(each) if isinstance(each, dict) else each for each in shown)

    return all_of_them


def while_chosen(events: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Let an event update the page until another session is chosen, which cancels its job.

    Its first two inputs are `Frame.chosen` and `Frame.session`.
    """

    @functools.wraps(events)
    def those(chosen: Chosen, name: str, *inputs: Any) -> Iterator[Any]:
        chosen.session = name
        with closing(events(chosen, name, *inputs)) as updates:  # type: ignore[type-var]  # a generator
            for values in updates:
                if chosen.session != name:
                    yield (NOTHING,) * len(values)  # Gradio sends the last update twice
                    return
                yield values

    return those


def model_choice(app: AppState, shelf: Shelf, name: str) -> gr.Dropdown:
    """An update of the model dropdown: the model of a session.

    Raises:
        Refused: as `AppState.model_of`.
    """
    model = app.model_of(shelf, name)
    return gr.Dropdown(value=model, interactive=shelf.store(name) is None)


def session_choices(shelf: Shelf, name: str) -> gr.Dropdown:
    """An update of the session dropdown: all sessions, with one selected."""
    names = shelf.names()
    if name not in names:
        names = [name, *names]
    return gr.Dropdown(choices=names, value=name)


def optional_integer(label: str, placeholder: str, *, value: str = "") -> gr.Textbox:
    """A field for a whole number or nothing; `placeholder` says what nothing means."""
    return gr.Textbox(value, label=label, placeholder=placeholder, max_lines=1, min_width=120)


def recall_choice(value: int, what: str, id: str) -> gr.Radio:
    """How many passages of what was read may be put before a message or a prompt."""
    choices = [("Off", 0), *((str(k), k) for k in range(1, MAX_PASSAGES + 1))]
    return gr.Radio(
        choices,
        value=value,
        label="Recall",
        info=f"Passages that have left memory and may be put before the {what}.",
        elem_id=id,
    )


def parse_optional_integer(text: str | None, what: str) -> int | None:
    """The value of an `optional_integer` field, None if it is empty.

    Raises:
        ValueError: not a whole number.
    """
    cleaned = (text or "").replace(",", "").strip()
    if not cleaned:
        return None
    if not cleaned.isdecimal() or len(cleaned) > 18:
        raise ValueError(f"{what} {cleaned[:40]!r}; allowed: a whole number, or nothing")
    return int(cleaned)


class collect_errors:
    """Suppresses errors and cancellation within a block; gives a list of error messages.

    What no visitor can help is in the server's log: a page must not wait for what has failed.
    """

    def __init__(self) -> None:
        self._messages: list[str] = []

    def __enter__(self) -> list[str]:
        return self._messages

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        if isinstance(error, (*SHOWN, gr.Error)):
            said = str(error.message) if isinstance(error, gr.Error) else str(error)
            self._messages.append(message(said, kind="error"))
        elif not isinstance(error, Cancelled):
            LOG.error("an event of the page failed", exc_info=error)
            self._messages.append(message(FAILED, kind="error"))
        return True
