"""The page: the header, the tabs, and what happens when a visitor opens or closes it."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from apps.demo.app_state import QUICK, AppState, visitor_id
from apps.demo.endpoints import add_endpoints
from apps.demo.example import example_html
from apps.demo.tabs.chat import chat_tab
from apps.demo.tabs.compare import compare_tab
from apps.demo.tabs.frame import (
    EMPTY_MEMORY,
    Chosen,
    Frame,
    collect_errors,
    cumulative,
    model_choice,
    saved_position_html,
    saved_strip_html,
    session_choices,
)
from apps.demo.tabs.read import read_tab
from apps.demo.tabs.remember import remember_tab
from apps.demo.tabs.sessions import sessions_tab
from apps.demo.tabs.write import write_tab

# The address names the session, so that a reload, a bookmark or a second tab finds it.
SET_ADDRESS = """(chosen, name) => {
    const address = new URL(window.location);
    if (name) address.searchParams.set("session", name);
    window.history.replaceState(null, "", address);
    return [chosen, name];
}"""


def build(app: AppState) -> gr.Blocks:
    """Build the Gradio application."""
    with gr.Blocks(title="streamlm", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(
            '<div class="heading"><h1>streamlm</h1><p>A language model that reads without end in '
            "bounded memory. Give it something to read, see what it remembers, and let it "
            "write.</p></div>"
        )
        with gr.Row(elem_id="bar"):
            session = gr.Dropdown(
                [],
                label="Session",
                info="Choose a session, or type the name of a new one.",
                allow_custom_value=True,
                elem_id="session",
                scale=4,
            )
            model = gr.Dropdown(
                app.models.names,
                value=app.models.default,
                label="Model",
                info="Of a session that begins.",
                elem_id="model",
                scale=2,
                min_width=160,
                visible=len(app.models.names) > 1,
            )
            new = gr.Button("New session", scale=1, min_width=120, elem_id="new")
        position = gr.HTML(elem_id="position")
        strip = gr.HTML(example_html(), elem_id="strip")
        layers = gr.HTML(EMPTY_MEMORY, elem_id="memory", render=False)  # reading updates it too
        frame = Frame(session, model, position, strip, layers, gr.State(""), gr.State(Chosen()))
        with gr.Tabs():
            with gr.Tab("Read", id="read"):
                read_tab(app, frame)
            chat_tab(app, frame)
            remember_tab(app, frame)
            with gr.Tab("Write", id="write"):
                write_tab(app, frame)
            sessions_tab(app, frame)
            compare_tab(app, frame)
        add_endpoints(app)

        def open_page(request: gr.Request) -> gr.Dropdown:
            with collect_errors():
                shelf = app.shelf(request)
                name = request.query_params.get("session", "")
                if name and _is_valid(app, request, name):
                    return session_choices(shelf, name)
                return session_choices(shelf, shelf.new_name())
            return gr.Dropdown()

        def new_session(model: str | None, request: gr.Request) -> gr.Dropdown:
            with collect_errors():
                shelf = app.shelf(request)
                name = shelf.new_name()
                if model is not None:
                    app.choose(shelf, name, model)
                return session_choices(shelf, name)
            return gr.Dropdown()

        def choose_model(name: str, model: str, request: gr.Request) -> Any:
            with collect_errors() as errors:
                shelf = app.shelf(request)
                if shelf.store(name) is None:
                    app.choose(shelf, name, model)
                return model_choice(app, shelf, name), gr.skip()
            return gr.skip(), errors[0]

        @cumulative
        def show_session(chosen: Chosen, name: str, request: gr.Request) -> Iterator[Any]:
            chosen.session = name
            with collect_errors() as errors:
                shelf, visitor = app.shelf(request), visitor_id(request)
                model = model_choice(app, shelf, name or "")
                yield saved_position_html(shelf, name or ""), gr.skip(), model
                strip = saved_strip_html(app, shelf, name or "", visitor=visitor)
                # Drawing takes a while, in which the session may have been read or rewound.
                yield saved_position_html(shelf, name or ""), strip, gr.skip()
            if errors:
                yield errors[0], EMPTY_MEMORY, gr.skip()
            app.warm_up()

        def close_page(request: gr.Request) -> None:
            app.jobs.cancel(visitor_id(request))

        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        page.load(open_page, None, session, **hidden)
        new.click(new_session, model, session, **hidden)
        model.input(choose_model, [session, model], [model, position], **QUICK, **hidden)
        shown = [position, strip, model]
        inputs = [frame.chosen, session]
        session.change(show_session, inputs, shown, js=SET_ADDRESS, **QUICK, **hidden)
        page.unload(close_page)
    page.queue(max_size=64, default_concurrency_limit=8)
    return page


def _is_valid(app: AppState, request: gr.Request, name: str) -> bool:
    """Whether the address names a session that exists or could be created."""
    with collect_errors() as errors:
        app.shelf(request).has(name)
    return not errors
