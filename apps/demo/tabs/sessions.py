"""The Sessions tab: list, fork, rewind, rename, export, import and delete sessions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from apps.demo.app_state import QUICK, AppState, visitor_id
from apps.demo.render.shelf_html import bar_html, sessions_html, timeline_html
from apps.demo.render.text_html import escape, message
from apps.demo.shelf import Shelf
from apps.demo.tabs.frame import (
    Frame,
    collect_errors,
    saved_position_html,
    saved_strip_html,
    session_choices,
)
from apps.demo.uploads import MAX_SESSION
from streamlm.units import size_text

PLACES = ("point", "rename", "export", "import", "delete")  # where messages are shown
PASSAGE_TOKENS = 80  # tokens of text shown before the chosen point

# An action on a shelf: returns the session to show next, and a message.
Action = Callable[[Shelf], tuple[str, str]]


def sessions_tab(app: AppState, frame: Frame) -> gr.Tab:
    """Build the tab; its lists are drawn when it is opened."""
    with gr.Tab("Sessions", id="sessions") as tab:
        # Inside the tab: Gradio counts a state among the tabs as one of them.
        drawn = gr.State("")  # the session that is shown
        statuses = {place: gr.HTML(elem_id=f"{place}-status", render=False) for place in PLACES}
        table = gr.HTML(elem_id="shelf")
        # Filled by the page's script.
        chosen = gr.Textbox(
            label="Session to open", elem_id="chosen", elem_classes="unseen", container=False
        )
        pointed = gr.Textbox(
            label="Token to choose", elem_id="pointed", elem_classes="unseen", container=False
        )
        with gr.Accordion("Rewind or fork", open=True):
            timeline = gr.HTML(elem_id="timeline")
            point = gr.Slider(0, 1, value=0, step=1, label="At token", elem_id="point")
            passage = gr.HTML(elem_id="passage")
            with gr.Row(elem_classes="ends"):
                rewind = gr.Button("Rewind to this point", elem_id="rewind")
                branch = gr.Textbox(label="Name of the fork", placeholder="draft", max_lines=1)
                fork = gr.Button("Fork at this point", elem_id="fork")
            statuses["point"].render()
        with gr.Accordion("Rename, export, import, delete", open=False):
            with gr.Row(elem_classes="ends"):
                new_name = gr.Textbox(label="New name", max_lines=1)
                rename = gr.Button("Rename", elem_id="rename")
            statuses["rename"].render()
            with gr.Row():
                export = gr.Button("Export", elem_id="export")
                file = gr.File(label="Exported session", interactive=False, visible=False)
            statuses["export"].render()
            with gr.Row(elem_classes="ends"):
                import_file = gr.File(
                    label=f"Exported session, at most {MAX_SESSION / 1e6:.0f} MB",
                    file_types=[".zip"],
                    height=160,
                    scale=2,
                    min_width=280,
                )
                import_name = gr.Textbox(label="Name of the import", max_lines=1)
                import_ = gr.Button("Import", elem_id="import")
            statuses["import"].render()
            delete = gr.Button("Delete…", variant="stop", elem_id="delete")
            with gr.Row(visible=False) as confirmation:
                yes = gr.Button("Delete for good", variant="stop", elem_id="delete-yes")
                no = gr.Button("Keep", elem_id="delete-no")
            statuses["delete"].render()

    views = [*statuses.values(), table, timeline, point, passage]
    views += [frame.session, frame.position, frame.strip, drawn]

    def show(shelf: Shelf, name: str, *, visitor: str) -> tuple[Any, ...]:
        """Updates of all views but the messages."""
        history = shelf.history(name) if shelf.has(name) else []
        position = history[-1].position if history else 0
        return (
            sessions_html(shelf, name),
            bar_html(history) + timeline_html(history),
            gr.Slider(maximum=max(position, 1), value=position),
            _passage_html(app, shelf, name, position),
            session_choices(shelf, name),
            saved_position_html(shelf, name),
            saved_strip_html(app, shelf, name, visitor=visitor),
            name,
        )

    def said(place: str, text: str = "", *, html: str = "") -> list[str]:
        """Updates of the messages: a new one at a place, and none elsewhere."""
        return [(html or message(text)) if each == place else "" for each in PLACES]

    def act(request: gr.Request, place: str, action: Action) -> tuple[Any, ...]:
        """Perform an action, then show its session, and its message beside its button."""
        with collect_errors() as errors:
            shelf, visitor = app.shelf(request), visitor_id(request)
            name, text = action(shelf)
            return (*said(place, text), *show(shelf, name, visitor=visitor))
        return (*said(place, html=errors[0]), *[gr.skip()] * 8)

    def open_tab(name: str, request: gr.Request) -> tuple[Any, ...]:
        with collect_errors() as errors:
            if not name:  # the page is still loading; this runs again with a name
                return (gr.skip(),) * len(views)
            return (*said(""), *show(app.shelf(request), name, visitor=visitor_id(request)))
        return (*said("point", html=errors[0]), *[gr.skip()] * 8)

    def choose(name: str, request: gr.Request) -> gr.Dropdown:
        with collect_errors():
            shelf = app.shelf(request)
            if shelf.has(name):
                return session_choices(shelf, name)
        return gr.Dropdown()

    def point_at(token: str) -> Any:
        token = token.partition(",")[0]
        return gr.Slider(value=int(token)) if token.isdecimal() else gr.skip()

    def change_session(name: str, shown: str, request: gr.Request) -> tuple[Any, ...]:
        # Actions of this tab change the session too, and have already shown it.
        return (gr.skip(),) * len(views) if name == shown else open_tab(name, request)

    def show_passage(name: str, token: float, request: gr.Request) -> str:
        with collect_errors() as errors:
            return _passage_html(app, app.shelf(request), name, int(token)) if name else ""
        return errors[0]

    def rewind_session(name: str, token: float, request: gr.Request) -> tuple[Any, ...]:
        def action(shelf: Shelf) -> tuple[str, str]:
            engine = app.engine_of(shelf, name)
            shelf.rewind(name, engine, tokens=int(token))
            return name, f"{name} is back at token {int(token):,}. Its history keeps the rest."

        return act(request, "point", action)

    def fork_session(name: str, token: float, branch: str, request: gr.Request) -> tuple[Any, ...]:
        def action(shelf: Shelf) -> tuple[str, str]:
            engine = app.engine_of(shelf, name)
            new = shelf.fork(name, branch.strip(), engine, tokens=int(token))
            return new, f"{new} starts at token {int(token):,} and is now the current session."

        return act(request, "point", action)

    def rename_session(name: str, new: str, request: gr.Request) -> tuple[Any, ...]:
        def action(shelf: Shelf) -> tuple[str, str]:
            renamed = shelf.rename(name, new.strip())
            return renamed, f"{name} is now {renamed}."

        return act(request, "rename", action)

    def export_session(name: str, request: gr.Request) -> tuple[Any, ...]:
        with collect_errors() as errors:
            # The server offers the files of this folder, and cleans it up periodically.
            exported = app.shelf(request).export(name, Path(app.files))
            text = (
                f"{size_text(exported.stat().st_size)}: the session and its branches, every token, "
                "and fewer snapshots the older they are."
            )
            return (*said("export", text), gr.File(value=str(exported), visible=True))
        return (*said("export", html=errors[0]), gr.skip())

    def import_session(path: str | None, name: str, request: gr.Request) -> tuple[Any, ...]:
        def action(shelf: Shelf) -> tuple[str, str]:
            if path is None:
                raise ValueError("Choose a file first.")
            return shelf.import_(path, name.strip()), f"Imported {name.strip()}."

        return act(request, "import", action)

    def delete_session(name: str, request: gr.Request) -> tuple[Any, ...]:
        def action(shelf: Shelf) -> tuple[str, str]:
            shelf.delete(name)
            remaining = shelf.names()
            following = remaining[0] if remaining else shelf.new_name()
            return following, f"Deleted {name.partition('@')[0]}."

        return (*act(request, "delete", action), gr.Row(visible=False))

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    quick: dict[str, Any] = {**QUICK, **private}
    tab.select(open_tab, frame.session, views, **quick)
    frame.session.change(change_session, [frame.session, drawn], views, **quick)
    # Not Gradio but the session says which tokens it has: it may have grown, or been rewound.
    at_token: dict[str, Any] = {**quick, "preprocess": False}
    latest: dict[str, Any] = {**at_token, "trigger_mode": "always_last"}
    point.change(show_passage, [frame.session, point], passage, **latest)
    rewind.click(rewind_session, [frame.session, point], views, **at_token)
    fork.click(fork_session, [frame.session, point, branch], views, **at_token)
    rename.click(rename_session, [frame.session, new_name], views, **quick)
    export.click(export_session, frame.session, [*statuses.values(), file], **quick)
    chosen.submit(choose, chosen, frame.session, **quick)
    pointed.submit(point_at, pointed, point, queue=False, **private)
    import_.click(import_session, [import_file, import_name], views, **quick)
    delete.click(lambda: gr.Row(visible=True), None, confirmation, queue=False, **private)
    no.click(lambda: gr.Row(visible=False), None, confirmation, queue=False, **private)
    yes.click(delete_session, frame.session, [*views, confirmation], **quick)
    return tab


def _passage_html(app: AppState, shelf: Shelf, name: str, token: int) -> str:
    """The text that leads to a position."""
    if not token or not shelf.has(name):
        return ""
    with shelf.open(name, app.engine_of(shelf, name).checkpoint, readonly=True) as session:
        token = min(token, session.position)
        text = session.text(max(0, token - PASSAGE_TOKENS), token)
    return f'<p class="passage">…{escape(text)}<b>▏</b></p>'
