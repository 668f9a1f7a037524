"""The Remember tab: what left memory, every slot of every layer, and what is retained by age."""

from typing import Any

import gradio as gr

from apps.demo import recalling
from apps.demo.app_state import QUICK, AppState, visitor_id
from apps.demo.render.recall_html import found_html
from apps.demo.render.retention_svg import retention_curve
from apps.demo.render.text_html import message
from apps.demo.shelf import Shelf
from apps.demo.tabs.frame import EMPTY_MEMORY, Frame, collect_errors
from streamlm.units import size_text

LEGEND = (
    "Columns are slots, rows are layers from first to last. A stronger colour means more "
    "attention; a lower cell means that compression has lost more."
)


def remember_tab(app: AppState, frame: Frame) -> gr.Tab:
    """Build the tab; its contents are drawn when it is opened."""
    with gr.Tab("Remember", id="remember") as tab:
        with gr.Row(elem_classes="ends"):
            asked = gr.Textbox(
                label="Recall",
                info="The best passages for a question, among all that has left memory.",
                placeholder="What was the ship called?",
                max_lines=1,
                elem_id="asked",
                scale=5,
            )
            find = gr.Button("Find", scale=1, min_width=100, elem_id="find")
        found = gr.HTML(elem_id="found")
        found_in = gr.State("")  # the session that was searched
        status = gr.HTML(message(LEGEND), elem_id="remember-status")
        frame.layers.render()
        curve = gr.HTML(elem_id="curve")
        refresh = gr.Button("Refresh", elem_id="refresh")

    def show(name: str, request: gr.Request) -> tuple[str, str, str]:
        with collect_errors() as errors:
            if not name:  # the page is still loading; this runs again with a name
                return message(LEGEND), EMPTY_MEMORY, ""
            return _contents(app, app.shelf(request), name, visitor=visitor_id(request))
        return errors[0], EMPTY_MEMORY, ""

    gr.on(
        [tab.select, refresh.click, frame.session.change],
        show,
        frame.session,
        [status, frame.layers, curve],
        **QUICK,
        show_progress="minimal",
        api_visibility="private",
    )

    def search(name: str, text: str, request: gr.Request) -> tuple[str, str]:
        with collect_errors() as errors:
            shelf = app.shelf(request)
            engine = app.engine_of(shelf, name)
            return found_html(recalling.find(shelf, name, text or "", engine=engine)), name
        return errors[0] if errors else "", name

    def change_session(name: str, searched: str) -> Any:
        # A turn of a chat updates the list of sessions too.
        return gr.skip() if name == searched else ""

    private: dict[str, Any] = {**QUICK, "api_visibility": "private"}
    gr.on(
        [find.click, asked.submit],
        search,
        [frame.session, asked],
        [found, found_in],
        show_progress="minimal",
        **private,
    )
    frame.session.change(
        change_session, [frame.session, found_in], found, show_progress="hidden", **private
    )
    return tab


def _contents(app: AppState, shelf: Shelf, name: str, *, visitor: str) -> tuple[str, str, str]:
    """The status, the layers, and the retention curve of a session's memory.

    Raises:
        Refused: the session cannot be read.
    """
    view = app.memory_view(shelf, name, visitor=visitor)
    if view is None:
        return message(LEGEND), EMPTY_MEMORY, ""
    size = size_text(len(view.report) * view.report.slot_bytes)
    status = message(f"The memory has {len(view.report):,} slots, {size} in total. {LEGEND}")
    return status, view.svg(), retention_curve(view.report)
