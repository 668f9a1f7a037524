"""The tab of sessions: list, fork, rewind, rename, export, import and delete them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from apps.demo.app_state import QUICK, Desk, visitor
from apps.demo.jobs import Job
from apps.demo.render.text_html import message, safe
from apps.demo.shelf import Shelf
from apps.demo.tabs.frame import Frame, choices, refusals, stand, strip_of
from apps.demo.uploads import MAX_SESSION
from memory_store import Ref

SNAPSHOTS = 6  # newest ones that the timeline shows
PASSAGE = 80  # tokens before a point that are shown

Action = Callable[[Shelf, str], tuple[str, str]]  # for a visitor; names a session, and tells


def sessions_tab(desk: Desk, frame: Frame) -> gr.Tab:
    """Build the tab; its lists are drawn when it is opened."""
    with gr.Tab("Sessions", id="sessions") as tab:
        # Among the tabs it would count as one, and the next would be shown twice.
        drawn = gr.State("")  # the session that is shown
        said = gr.HTML(elem_id="sessions-said")
        shelf_list = gr.HTML(elem_id="shelf")
        with gr.Accordion("Rewind, or fork at an earlier point", open=True):
            timeline = gr.HTML(elem_id="timeline")
            point = gr.Slider(0, 1, value=0, step=1, label="Token", elem_id="point")
            passage = gr.HTML(elem_id="passage")
            with gr.Row(elem_classes="ends"):
                rewind = gr.Button("Rewind to it", elem_id="rewind")
                branch = gr.Textbox(label="Name of the fork", placeholder="draft", max_lines=1)
                fork = gr.Button("Fork there", elem_id="fork")
        with gr.Accordion("Rename, export, import, delete", open=False):
            with gr.Row(elem_classes="ends"):
                new_name = gr.Textbox(label="New name", max_lines=1)
                rename = gr.Button("Rename", elem_id="rename")
            with gr.Row():
                export = gr.Button("Export", elem_id="export")
                file = gr.File(label="The session as a file", interactive=False, visible=False)
            with gr.Row(elem_classes="ends"):
                import_file = gr.File(
                    label=f"A file of Export, at most {MAX_SESSION / 1e6:.0f} MB",
                    file_types=[".zip"],
                    height=140,
                )
                import_name = gr.Textbox(label="Name for it", max_lines=1)
                bring = gr.Button("Import", elem_id="import")
            delete = gr.Button("Delete…", variant="stop", elem_id="delete")
            with gr.Row(visible=False) as sure:
                yes = gr.Button("Delete it for good", variant="stop", elem_id="delete-yes")
                no = gr.Button("Keep it", elem_id="delete-no")

    views = [said, shelf_list, timeline, point, passage]
    views += [frame.session, frame.standing, frame.strip, drawn]

    def show(shelf: Shelf, name: str, *, who: str) -> tuple[Any, ...]:
        history = shelf.history(name) if shelf.has(name) else []
        position = history[-1].position if history else 0
        return (
            _shelf(shelf, name),
            _timeline(history),
            gr.Slider(maximum=max(position, 1), value=position),
            _passage(desk, shelf, name, position),
            choices(shelf, name),
            stand(shelf, name),
            strip_of(desk, shelf, name, visitor=who),
            name,
        )

    def act(request: gr.Request, action: Action) -> tuple[Any, ...]:
        """Do something, then show the session that it names, and its words."""
        with refusals() as told:
            shelf, who = desk.shelf(request), visitor(request)
            name, words = action(shelf, who)
            return (message(words), *show(shelf, name, who=who))
        return (told[0], *[gr.skip()] * 8)

    def opened(name: str, request: gr.Request) -> tuple[Any, ...]:
        with refusals() as told:
            if not name:  # the page is not ready; it comes back when it is
                return (gr.skip(),) * 9
            return (gr.skip(), *show(desk.shelf(request), name, who=visitor(request)))
        return (told[0], *[gr.skip()] * 8)

    def changed(name: str, before: str, request: gr.Request) -> tuple[Any, ...]:
        # What is done here changes the session, too, and has shown it by then.
        return (gr.skip(),) * 9 if name == before else opened(name, request)

    def at_point(name: str, at: float, request: gr.Request) -> str:
        with refusals() as told:
            return _passage(desk, desk.shelf(request), name, int(at)) if name else ""
        return told[0]

    def rewound(name: str, at: float, request: gr.Request) -> tuple[Any, ...]:
        def action(shelf: Shelf, who: str) -> tuple[str, str]:
            def work(job: Job) -> None:
                with shelf.open(name, desk.checkpoint) as session:
                    session.rewind(tokens=int(at))

            desk.jobs.do(work, visitor=who)
            told = f"{name} is back at token {int(at):,}. Its history keeps what was after it."
            return name, told

        return act(request, action)

    def forked(name: str, at: float, branch: str, request: gr.Request) -> tuple[Any, ...]:
        def action(shelf: Shelf, who: str) -> tuple[str, str]:
            def work(job: Job) -> str:
                return shelf.fork(name, branch.strip(), desk.checkpoint, tokens=int(at))

            new = desk.jobs.do(work, visitor=who)
            return new, f"{new} begins at token {int(at):,}; what you do now happens to it."

        return act(request, action)

    def renamed(name: str, new: str, request: gr.Request) -> tuple[Any, ...]:
        def action(shelf: Shelf, who: str) -> tuple[str, str]:
            renamed = shelf.rename(name, new.strip())
            return renamed, f"{name} is now {renamed}."

        return act(request, action)

    def exported(name: str, request: gr.Request) -> tuple[str, Any]:
        with refusals() as told:
            # Into the folder that the server gives files out from, and clears now and then.
            made = desk.shelf(request).export(name, Path(desk.files))
            said = message("The file has the session with all its history.")
            return said, gr.File(value=str(made), visible=True)
        return told[0], gr.skip()

    def imported(path: str | None, name: str, request: gr.Request) -> tuple[Any, ...]:
        def action(shelf: Shelf, who: str) -> tuple[str, str]:
            if path is None:
                raise ValueError("Choose a file first.")
            return shelf.import_(path, name.strip()), f"{name.strip()} is here."

        return act(request, action)

    def deleted(name: str, request: gr.Request) -> tuple[Any, ...]:
        def action(shelf: Shelf, who: str) -> tuple[str, str]:
            shelf.delete(name)
            left = shelf.names()
            next_ = left[0] if left else shelf.new_name()
            return next_, f"{name.partition('@')[0]} is deleted."

        return (*act(request, action), gr.Row(visible=False))

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    model: dict[str, Any] = {**QUICK, **private}
    tab.select(lambda: "", None, said, queue=False, **private)
    tab.select(opened, frame.session, views, **model)
    frame.session.change(changed, [frame.session, drawn], views, **model)
    follow: dict[str, Any] = {**model, "trigger_mode": "always_last"}
    point.change(at_point, [frame.session, point], passage, **follow)
    rewind.click(rewound, [frame.session, point], views, **model)
    fork.click(forked, [frame.session, point, branch], views, **model)
    rename.click(renamed, [frame.session, new_name], views, **model)
    export.click(exported, frame.session, [said, file], **model)
    bring.click(imported, [import_file, import_name], views, **model)
    delete.click(lambda: gr.Row(visible=True), None, sure, queue=False, **private)
    no.click(lambda: gr.Row(visible=False), None, sure, queue=False, **private)
    yes.click(deleted, frame.session, [*views, sure], **model)
    return tab


def _shelf(shelf: Shelf, here: str) -> str:
    """The sessions as a table."""
    rows = "".join(
        f'<tr class="{"here" if row.name == here else ""}"><td>{safe(row.name)}</td>'
        f"<td>{row.position:,}</td><td>{_when(row.saved)}</td></tr>"
        for row in shelf.rows()
    )
    if not rows:
        return message("There are no sessions yet; one begins when you read or write.")
    return (
        '<div class="wide"><table class="shelf"><thead><tr><th>Session</th><th>Tokens</th>'
        f"<th>Saved</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _timeline(history: list[Ref]) -> str:
    """The newest snapshots of a session, newest first."""
    if not history:
        return ""
    rows = "".join(
        f"<tr><td>{ref.seq}</td><td>{ref.position:,}</td><td>{_when(ref.created)}</td></tr>"
        for ref in reversed(history[-SNAPSHOTS:])
    )
    older = len(history) - SNAPSHOTS
    more = message(f"and {older} older ones") if older > 0 else ""
    return (
        '<div class="wide"><table class="timeline"><thead><tr><th>Snapshot</th><th>Token</th>'
        f"<th>Saved</th></tr></thead><tbody>{rows}</tbody></table></div>{more}"
    )


def _passage(desk: Desk, shelf: Shelf, name: str, at: int) -> str:
    """The text that leads to a point."""
    if not at or not shelf.has(name):
        return ""
    with shelf.open(name, desk.checkpoint, readonly=True) as session:
        at = min(at, session.position)
        text = session.text(max(0, at - PASSAGE), at)
    return f'<p class="passage">…{safe(text)}<b>▏</b></p>'


def _when(seconds: float | None) -> str:
    """A time of this computer's clock."""
    if seconds is None:
        return "never"
    return time.strftime("%d %b %Y, %H:%M", time.localtime(seconds))
