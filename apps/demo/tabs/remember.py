"""The tab that shows what is remembered: every slot of every layer, and what is kept by age."""

import gradio as gr

from apps.demo.app_state import QUICK, Desk, visitor
from apps.demo.render.memory_svg import recall_curve
from apps.demo.render.text_html import message
from apps.demo.shelf import Shelf
from apps.demo.tabs.frame import EMPTY, Frame, refusals
from streamlm.units import size_text

ABOUT = (
    "A column is a slot, a row is a layer, first to last. The stronger the colour, the more "
    "attention the slot receives; the lower the cell, the more its compression has lost."
)


def remember_tab(desk: Desk, frame: Frame) -> gr.Tab:
    """Build the tab; what it shows is drawn when it is opened."""
    with gr.Tab("Remember", id="remember") as tab:
        said = gr.HTML(message(ABOUT), elem_id="remember-said")
        frame.layers.render()
        curve = gr.HTML(elem_id="curve")
        again = gr.Button("Look again", elem_id="look")

    def look(name: str, request: gr.Request) -> tuple[str, str, str]:
        with refusals() as told:
            if not name:  # the page is not ready; it comes back when it is
                return message(ABOUT), EMPTY, ""
            return remember(desk, desk.shelf(request), name, visitor=visitor(request))
        return told[0], EMPTY, ""

    gr.on(
        [tab.select, again.click, frame.session.change],
        look,
        frame.session,
        [said, frame.layers, curve],
        **QUICK,
        show_progress="minimal",
        api_visibility="private",
    )
    return tab


def remember(desk: Desk, shelf: Shelf, name: str, *, visitor: str) -> tuple[str, str, str]:
    """What to say of a memory, its picture, and the curve of what is kept by age.

    Raises:
        Refused: the session cannot be read.
    """
    seen = desk.look(shelf, name, visitor=visitor)
    if seen is None:
        return message(ABOUT), EMPTY, ""
    size = size_text(len(seen.report) * seen.report.slot_bytes)
    facts = f"{len(seen.report):,} slots stand for what was read; together they have {size}. "
    return message(facts + ABOUT), seen.picture(), recall_curve(seen.report)
