"""The Read tab: a pasted text, a file or the bundled book, coloured by surprise as it is read."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from apps.demo import reading, uploads
from apps.demo.app_state import LONG, QUICK, AppState, visitor_id
from apps.demo.example import book
from apps.demo.jobs import Job
from apps.demo.render.memory_svg import MemoryView
from apps.demo.render.text_html import ScoredToken, message, surprise_html
from apps.demo.tabs.frame import (
    Chosen,
    Frame,
    cancels_jobs,
    collect_errors,
    cumulative,
    model_choice,
    position_html,
    saved_position_html,
    session_choices,
    then_memory,
    while_chosen,
)

BOOK = "The bundled book"
PASTE, FILE = "Pasted text", "A file"
ABOUT_BOOK = "Beyond the City, by Arthur Conan Doyle: some 60,000 tokens."
SHOWN_TOKENS = 400  # newest tokens on the page
UPDATE_INTERVAL = 0.4  # seconds between two updates of the page
Content = Callable[[], str]  # gives the text to read, or raises ValueError
BUTTONS = {BOOK: "Read the bundled book", PASTE: "Read the text", FILE: "Read the file"}


def read_tab(app: AppState, frame: Frame) -> None:
    """Build the tab."""
    source = gr.Radio([BOOK, PASTE, FILE], value=BOOK, label="Source", elem_id="source")
    about = gr.HTML(message(ABOUT_BOOK), elem_id="about-book")
    text = gr.Textbox(
        label="Text",
        lines=5,
        max_lines=14,
        placeholder="Paste a text to read…",
        visible=False,
    )
    file = gr.File(
        label=f"File: {', '.join(uploads.KINDS)}, at most {uploads.MAX_FILE / 1e6:.0f} MB",
        file_types=list(uploads.KINDS),
        visible=False,
        height=140,
        elem_id="file",
    )
    with gr.Row():
        start = gr.Button(BUTTONS[BOOK], variant="primary", elem_id="read")
        stop = gr.Button("Stop", interactive=False, elem_id="stop-reading")
    resume = gr.Button("Go on", visible=False, elem_id="resume-reading")
    status = gr.HTML(elem_id="read-status")
    bar = gr.HTML(elem_id="read-bar")
    page = gr.HTML(elem_id="read-page")
    drawn = gr.State("")  # the session that is shown

    source.change(
        lambda chosen: (
            *(gr.update(visible=chosen == each) for each in (BOOK, PASTE, FILE)),
            BUTTONS[chosen],
        ),
        source,
        [about, text, file, start],
        queue=False,
        api_visibility="private",
        show_progress="hidden",
    )
    memory = [frame.strip, frame.layers]
    outputs = [status, bar, page, frame.position, *memory, frame.session, frame.model, start, stop]
    outputs += [resume, drawn]

    def reading_of(name: str, label: str, content: Content, request: gr.Request) -> Iterator[Any]:
        """Updates of `outputs` while a session reads a text."""
        busy = (gr.update(interactive=False), gr.update(interactive=True))
        idle = (gr.update(interactive=True), gr.update(interactive=False))
        shown: deque[ScoredToken] = deque(maxlen=SHOWN_TOKENS)
        position, summary, updated = 0, "", 0.0
        position_update: Any = gr.skip()
        slots: MemoryView | None = None
        view: MemoryView | None = None
        hidden = gr.update(visible=False)
        yield message("Opening the session…"), "", "", *[gr.skip()] * 5, *busy, hidden, name
        with collect_errors() as errors:
            shelf, visitor = app.shelf(request), visitor_id(request)
            text = content()
            engine = app.engine_of(shelf, name)
            app.unfinished.keep(shelf, name, label, text)
            bar = ""

            def work(job: Job) -> None:
                reading.read(job, shelf, name, text=text, engine=engine)

            for events in app.jobs.stream(work, visitor=visitor):
                for event in events:
                    shown.extend(event.tokens)
                    position, bar = event.position, event.bar
                    summary = event.summary or summary
                    slots, view = event.slots or slots, event.view or view
                if summary or time.monotonic() - updated > UPDATE_INTERVAL:
                    updated = time.monotonic()
                    yield (
                        message(summary),
                        bar,
                        surprise_html(shown),
                        position_html(name, position),
                        gr.skip() if slots is None else slots.strip_html(),
                        gr.skip() if view is None else view.svg(),
                        *[gr.skip()] * 2,
                        *busy,
                        *[gr.skip()] * 2,
                    )
                    view = None
            if summary:
                app.unfinished.forget(shelf, name)
            else:
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
            *[gr.skip()] * 2,
        )

    @while_chosen
    @cumulative
    def read(
        _: Chosen,
        name: str,
        chosen: str,
        pasted: str | None,
        uploaded: str | None,
        request: gr.Request,
    ) -> Iterator[Any]:
        label = _label(chosen, uploaded)
        yield from reading_of(name, label, lambda: _content(chosen, pasted, uploaded), request)

    @while_chosen
    @cumulative
    def go_on(_: Chosen, name: str, request: gr.Request) -> Iterator[Any]:
        def content() -> str:
            found = app.unfinished.of(app.shelf(request), name)
            if found is None:
                raise ValueError("The text is no longer here: choose it again above.")
            return found.text

        yield from reading_of(name, "", content, request)

    def show(chosen: Chosen, name: str, shown: str, request: gr.Request) -> tuple[Any, ...]:
        """What the tab says of another session: nothing, or that its reading can go on."""
        chosen.session = name
        idle = (gr.update(interactive=True), gr.update(interactive=False))
        if name == shown:
            return (gr.skip(),) * 7
        with collect_errors():
            found = app.unfinished.of(app.shelf(request), name) if name else None
            if found is not None:
                offer = gr.update(visible=True, value=f"Go on reading {found.label}")
                return message("Its reading was interrupted."), "", "", *idle, offer, name
        return "", "", "", *idle, gr.update(visible=False), name

    options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    done = start.click(
        read, [frame.chosen, frame.session, source, text, file], outputs, **LONG, **options
    )
    then_memory(app, frame, done, layers=True)
    resumed = resume.click(go_on, [frame.chosen, frame.session], outputs, **LONG, **options)
    then_memory(app, frame, resumed, layers=True)
    frame.session.change(
        show,
        [frame.chosen, frame.session, drawn],
        [status, bar, page, start, stop, resume, drawn],
        **QUICK,
        **options,
    )

    cancels_jobs(app, stop, status)


def _label(chosen: str, uploaded: str | None) -> str:
    """What a text is called."""
    if chosen == FILE and uploaded is not None:
        return uploads.display_name(Path(uploaded).name)
    return "the bundled book" if chosen == BOOK else "the text"


def _content(chosen: str, pasted: str | None, uploaded: str | None) -> str:
    """The text to read.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    if chosen == BOOK:
        return book()
    if chosen == FILE:
        if uploaded is None:
            raise ValueError("Choose a file first, or paste a text.")
        return uploads.extract_text(uploaded, Path(uploaded).name)
    if not (pasted or "").strip():
        raise ValueError("There is nothing to read yet: paste a text, or choose the bundled book.")
    return uploads.checked(pasted or "", "The text")
