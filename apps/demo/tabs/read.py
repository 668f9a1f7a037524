"""The Read tab: a pasted text, a file or the bundled book, coloured by surprise as it is read."""

import time
from collections import deque
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr

from apps.demo import reading, uploads
from apps.demo.app_state import LONG, AppState, visitor_id
from apps.demo.jobs import Job
from apps.demo.render.memory_svg import MemoryView
from apps.demo.render.text_html import ScoredToken, message, surprise_html
from apps.demo.tabs.frame import (
    Frame,
    cancels_jobs,
    collect_errors,
    cumulative,
    model_choice,
    position_html,
    saved_position_html,
    session_choices,
    then_memory,
)

BOOK = "Bundled book: Beyond the City, by Arthur Conan Doyle"
PASTE, FILE = "Pasted text", "A file"
SHOWN_TOKENS = 400  # newest tokens on the page
UPDATE_INTERVAL = 0.4  # seconds between two updates of the page


def read_tab(app: AppState, frame: Frame) -> None:
    """Build the tab."""
    source = gr.Radio([PASTE, FILE, BOOK], value=PASTE, label="Source")
    text = gr.Textbox(label="Text", lines=5, max_lines=14, placeholder="Paste a text to read…")
    file = gr.File(
        label=f"File: {', '.join(uploads.KINDS)}, at most {uploads.MAX_FILE / 1e6:.0f} MB",
        file_types=list(uploads.KINDS),
        visible=False,
        height=140,
        elem_id="file",
    )
    with gr.Row():
        start = gr.Button("Read", variant="primary", elem_id="read")
        stop = gr.Button("Stop", interactive=False, elem_id="stop-reading")
    status = gr.HTML(elem_id="read-status")
    bar = gr.HTML(elem_id="read-bar")
    page = gr.HTML(elem_id="read-page")

    source.change(
        lambda chosen: (gr.update(visible=chosen == PASTE), gr.update(visible=chosen == FILE)),
        source,
        [text, file],
        queue=False,
        api_visibility="private",
    )
    memory = [frame.strip, frame.layers]
    outputs = [status, bar, page, frame.position, *memory, frame.session, frame.model, start, stop]

    @cumulative
    def read(
        name: str, chosen: str, pasted: str, uploaded: str | None, request: gr.Request
    ) -> Iterator[Any]:
        busy = (gr.update(interactive=False), gr.update(interactive=True))
        idle = (gr.update(interactive=True), gr.update(interactive=False))
        shown: deque[ScoredToken] = deque(maxlen=SHOWN_TOKENS)
        position, summary, updated = 0, "", 0.0
        position_update: Any = gr.skip()
        view: MemoryView | None = None
        yield (message("Opening the session…"), "", "", *[gr.skip()] * 5, *busy)
        with collect_errors() as errors:
            shelf, visitor = app.shelf(request), visitor_id(request)
            content = _content(chosen, pasted, uploaded)
            engine = app.engine_of(shelf, name)
            bar = ""

            def work(job: Job) -> None:
                reading.read(job, shelf, name, text=content, engine=engine)

            for events in app.jobs.stream(work, visitor=visitor):
                for event in events:
                    shown.extend(event.tokens)
                    position, bar = event.position, event.bar
                    summary = event.summary or summary
                    view = event.view or view
                if summary or time.monotonic() - updated > UPDATE_INTERVAL:
                    updated = time.monotonic()
                    yield (
                        message(summary),
                        bar,
                        surprise_html(shown),
                        position_html(name, position),
                        *_memory_updates(view),
                        *[gr.skip()] * 2,
                        *busy,
                    )
                    view = None
            if not summary:
                summary = "Stopped. Everything read so far is saved; read again to resume."
                position_update = saved_position_html(shelf, name)
        status_update = errors[0] if errors else message(summary)
        updates: list[Any] = [gr.skip()] * 2
        if not errors:
            updates = [session_choices(shelf, name), model_choice(app, shelf, name)]
        yield (
            status_update,
            gr.skip(),
            gr.skip(),
            position_update,
            *[gr.skip()] * 2,
            *updates,
            *idle,
        )

    done = start.click(
        read,
        [frame.session, source, text, file],
        outputs,
        **LONG,
        show_progress="hidden",
        api_visibility="private",
    )
    then_memory(app, frame, done, layers=True)

    cancels_jobs(app, stop, status)


def _memory_updates(view: MemoryView | None) -> list[Any]:
    """Updates of the strip and of the layers; none without a view."""
    return [gr.skip(), gr.skip()] if view is None else [view.svg(layers=False), view.svg()]


def _content(chosen: str, pasted: str, uploaded: str | None) -> str:
    """The text to read.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    if chosen == BOOK:
        book = resources.files("streamlm") / "assets" / "books" / "beyond-the-city.txt"
        return book.read_text(encoding="utf-8")
    if chosen == FILE:
        if uploaded is None:
            raise ValueError("Choose a file first, or paste a text.")
        return uploads.extract_text(uploaded, Path(uploaded).name)
    if not pasted.strip():
        raise ValueError("There is nothing to read yet: paste a text, or choose the bundled book.")
    return uploads.checked(pasted, "The text")
