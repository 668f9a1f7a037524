"""The page: what stands above the tabs, the tabs, and what happens when it is opened and closed."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from apps.demo.app_state import QUICK, Desk, visitor
from apps.demo.endpoints import add_endpoints
from apps.demo.tabs.compare import compare_tab
from apps.demo.tabs.frame import EMPTY, Frame, choices, refusals, stand, strip_of
from apps.demo.tabs.read import read_tab
from apps.demo.tabs.remember import remember_tab
from apps.demo.tabs.sessions import sessions_tab
from apps.demo.tabs.write import write_tab

# A reload, a bookmark and a second tab find the session by the address.
IN_ADDRESS = """(name) => {
    const address = new URL(window.location);
    if (name) address.searchParams.set("session", name);
    window.history.replaceState(null, "", address);
    return name;
}"""


def build(desk: Desk) -> gr.Blocks:
    """The application over a desk."""
    with gr.Blocks(title="streamlm", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(
            '<div class="heading"><h1>streamlm</h1><p>A language model that reads without end in '
            "bounded memory. Give it something to read, look at what it remembers, and let it "
            "write on.</p></div>"
        )
        with gr.Row(elem_id="bar"):
            session = gr.Dropdown(
                [],
                label="Session",
                info="Type a new name to begin another.",
                allow_custom_value=True,
                elem_id="session",
                scale=4,
            )
            new = gr.Button("New session", scale=1, min_width=120, elem_id="new")
        standing = gr.HTML(elem_id="standing")
        strip = gr.HTML(EMPTY, elem_id="strip")
        layers = gr.HTML(EMPTY, elem_id="memory", render=False)  # reading redraws it, too
        frame = Frame(session, standing, strip, layers)
        with gr.Tabs():
            with gr.Tab("Read", id="read"):
                read_tab(desk, frame)
            remember_tab(desk, frame)
            with gr.Tab("Write", id="write"):
                write_tab(desk, frame)
            sessions_tab(desk, frame)
            compare_tab(desk, frame)
        add_endpoints(desk)

        def opened(request: gr.Request) -> gr.Dropdown:
            with refusals():
                shelf = desk.shelf(request)
                asked = request.query_params.get("session", "")
                if asked and _is_name(desk, request, asked):
                    return choices(shelf, asked)
                return choices(shelf, shelf.new_name())
            return gr.Dropdown()

        def begun(request: gr.Request) -> gr.Dropdown:
            with refusals():
                shelf = desk.shelf(request)
                return choices(shelf, shelf.new_name())
            return gr.Dropdown()

        def shown(name: str, request: gr.Request) -> Iterator[Any]:
            with refusals() as told:
                shelf = desk.shelf(request)
                yield stand(shelf, name or ""), gr.skip()
                yield gr.skip(), strip_of(desk, shelf, name or "", visitor=visitor(request))
            if told:
                yield told[0], EMPTY
            desk.warm_up()

        def closed(request: gr.Request) -> None:
            desk.jobs.stop(visitor(request))

        page.load(opened, None, session, api_visibility="private", show_progress="hidden")
        new.click(begun, None, session, api_visibility="private", show_progress="hidden")
        session.change(
            shown,
            session,
            [standing, strip],
            js=IN_ADDRESS,
            **QUICK,
            show_progress="hidden",
            api_visibility="private",
        )
        page.unload(closed)
    page.queue(max_size=64, default_concurrency_limit=8)
    return page


def _is_name(desk: Desk, request: gr.Request, name: str) -> bool:
    with refusals() as told:
        desk.shelf(request).has(name)
    return not told
