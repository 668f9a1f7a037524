"""The tab that reads: a text, a file or the bundled book, coloured by surprise as it goes."""

import time
from collections import deque
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr

from apps.demo import reading, uploads
from apps.demo.app_state import LONG, Desk, visitor
from apps.demo.render.memory_svg import Seen
from apps.demo.render.text_html import Word, by_surprise, message
from apps.demo.tabs.frame import Frame, choices, refusals, stand, standing

BOOK = "The bundled book: Beyond the City, by Arthur Conan Doyle"
PASTE, FILE = "Text that I paste", "A file"
SHOWN = 400  # newest tokens that are shown
OFTEN = 0.4  # seconds between two updates of the page


def read_tab(desk: Desk, frame: Frame) -> None:
    """Build the tab."""
    what = gr.Radio([PASTE, FILE, BOOK], value=PASTE, label="What to read")
    text = gr.Textbox(label="Text", lines=5, max_lines=14, placeholder="Paste something to read…")
    file = gr.File(
        label=f"File: {', '.join(uploads.KINDS)}, at most {uploads.MAX_FILE / 1e6:.0f} MB",
        file_types=list(uploads.KINDS),
        visible=False,
        height=140,
        elem_id="file",
    )
    with gr.Row():
        begin = gr.Button("Read", variant="primary", elem_id="read")
        stop = gr.Button("Stop", interactive=False, elem_id="stop-reading")
    said = gr.HTML(elem_id="read-said")
    bar = gr.HTML(elem_id="read-bar")
    page = gr.HTML(elem_id="read-page")

    what.change(
        lambda chosen: (gr.update(visible=chosen == PASTE), gr.update(visible=chosen == FILE)),
        what,
        [text, file],
        queue=False,
        api_visibility="private",
    )
    memory_of = [frame.strip, frame.layers]
    outputs = [said, bar, page, frame.standing, *memory_of, frame.session, begin, stop]

    def read(
        name: str, chosen: str, pasted: str, uploaded: str | None, request: gr.Request
    ) -> Iterator[Any]:
        busy = (gr.update(interactive=False), gr.update(interactive=True))
        idle = (gr.update(interactive=True), gr.update(interactive=False))
        shown: deque[Word] = deque(maxlen=SHOWN)
        position, ended, last = 0, "", 0.0
        line: Any = gr.skip()
        memory: Seen | None = None
        yield (message("Opening…"), "", "", *[gr.skip()] * 4, *busy)
        with refusals() as told:
            shelf, here = desk.shelf(request), visitor(request)
            words = _text(chosen, pasted, uploaded)
            checkpoint = desk.checkpoint
            bar = ""

            def work(job: Any) -> None:
                reading.read(job, shelf, name, text=words, checkpoint=checkpoint)

            for items in desk.jobs.run(work, visitor=here):
                for news in items:
                    shown.extend(news.words)
                    position, ended, bar = news.position, news.end or ended, news.bar
                    memory = news.seen or memory
                if ended or time.monotonic() - last > OFTEN:
                    last = time.monotonic()
                    yield (
                        message(ended),
                        bar,
                        by_surprise(shown),
                        standing(name, position),
                        *_pictures(memory),
                        gr.skip(),
                        *busy,
                    )
                    memory = None
            if not ended:
                ended = "Stopped. What was read is saved; the same text goes on from here."
                line, memory = stand(shelf, name), desk.look(shelf, name, visitor=here)
        last_word = told[0] if told else message(ended)
        known = choices(shelf, name) if not told else gr.skip()
        yield (last_word, gr.skip(), gr.skip(), line, *_pictures(memory), known, *idle)

    begin.click(
        read,
        [frame.session, what, text, file],
        outputs,
        **LONG,
        show_progress="hidden",
        api_visibility="private",
    )

    def halt(request: gr.Request) -> str:
        return message("Stopping…") if desk.jobs.stop(visitor(request)) else ""

    stop.click(halt, None, said, queue=False, api_visibility="private")


def _pictures(memory: Seen | None) -> list[Any]:
    """A memory in one row, and with a row for each layer."""
    if memory is None:
        return [gr.skip(), gr.skip()]
    return [memory.picture(layers=False), memory.picture()]


def _text(chosen: str, pasted: str, uploaded: str | None) -> str:
    """The text that a visitor has chosen.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    if chosen == BOOK:
        book = resources.files("streamlm") / "assets" / "books" / "beyond-the-city.txt"
        return book.read_text(encoding="utf-8")
    if chosen == FILE:
        if uploaded is None:
            raise ValueError("Choose a file first, or paste a text.")
        return uploads.text_of(uploaded, Path(uploaded).name)
    if not pasted.strip():
        raise ValueError("There is nothing to read yet: paste a text, or choose the bundled book.")
    return uploads.checked(pasted, "The text")
