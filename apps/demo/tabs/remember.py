"""The Remember tab: every slot of every layer, and how much of the text is retained by age."""

import gradio as gr

from apps.demo.app_state import QUICK, AppState, visitor_id
from apps.demo.render.memory_svg import retention_curve
from apps.demo.render.text_html import message
from apps.demo.shelf import Shelf
from apps.demo.tabs.frame import EMPTY_MEMORY, Frame, collect_errors
from streamlm.units import size_text

LEGEND = (
    "Columns are slots, rows are layers from first to last. A stronger colour means more "
    "attention; a shorter cell means that compression has lost more."
)


def remember_tab(app: AppState, frame: Frame) -> gr.Tab:
    """Build the tab; its contents are drawn when it is opened."""
    with gr.Tab("Remember", id="remember") as tab:
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
