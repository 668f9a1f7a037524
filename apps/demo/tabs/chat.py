"""The Chat tab: the session as a conversation, with replies that appear as they are written."""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from apps.demo import chatting
from apps.demo.app_state import LONG, QUICK, AppState, visitor_id
from apps.demo.jobs import Job
from apps.demo.quotes import Talk
from apps.demo.render.chat_html import chat_html
from apps.demo.render.recall_html import Recollection, recalled_html
from apps.demo.render.text_html import message
from apps.demo.tabs.frame import (
    Chosen,
    Frame,
    cancels_jobs,
    collect_errors,
    model_choice,
    position_html,
    recall_choice,
    saved_position_html,
    session_choices,
    then_memory,
    while_chosen,
)
from streamlm.checkpoints.catalogue import chat_models

UPDATE_INTERVAL = 0.15  # seconds between two updates of the page
ABOUT = "The model has read whatever this session has read. Ask about it, or about anything else."


def chat_tab(app: AppState, frame: Frame) -> gr.Tab:
    """Build the tab; the talk so far is drawn when it is opened."""
    with gr.Tab("Chat", id="chat") as tab:
        page = gr.HTML(elem_id="chat-page")
        status = gr.HTML(elem_id="chat-status")
        recalled = gr.HTML(elem_id="chat-recalled")
        said = gr.Textbox(
            label="Message",
            lines=1,  # so that Enter sends
            max_lines=8,
            placeholder="Ask something…",
            elem_id="message",
        )
        with gr.Row():
            send = gr.Button("Send", variant="primary", elem_id="send")
            stop = gr.Button("Stop", interactive=False, elem_id="stop-reply")
            undo = gr.Button("Undo", interactive=False, elem_id="undo-turn")
        recall = recall_choice(1, "message", "chat-recall")
        with gr.Accordion("System prompt and sampling", open=False):
            system = gr.Textbox(
                label="System prompt",
                info="Of a chat that begins. Empty: the model's own.",
                lines=2,
            )
            with gr.Row():
                length = gr.Slider(
                    1, chatting.MAX_TOKENS, value=400, step=1, label="Tokens", elem_id="chat-tokens"
                )
                temperature = gr.Slider(
                    0,
                    2,
                    value=0.2,
                    step=0.05,
                    label="Temperature (0: greedy)",
                    elem_id="chat-temperature",
                )
                top_p = gr.Slider(0.05, 1, value=0.9, step=0.05, label="Top-p (1: off)")
                penalty = gr.Slider(1, 2, value=1.1, step=0.05, label="Repetition penalty (1: off)")
        turns = gr.State([])  # (session, snapshot) before each turn, for undo
        drawn = gr.State("")  # the session that is shown

    buttons = [send, stop, undo]
    outputs = [page, status, said, frame.position, frame.model, frame.session, *buttons]
    outputs += [turns, recalled]

    @while_chosen
    def talk(
        _: Chosen,
        name: str,
        text: str,
        system: str | None,
        max_tokens: float,
        temperature: float,
        top_p: float,
        penalty: float,
        recall: int,
        snapshots: list[tuple[str, int]],
        request: gr.Request,
    ) -> Iterator[Any]:
        busy = [gr.update(interactive=on) for on in (False, True, False)]
        idle = [gr.update(interactive=on) for on in (True, False)]
        before: Talk | None = None
        finished: chatting.ReplyFinished | None = None
        written, updated, panel = "", 0.0, ""
        cleared, cleared_at = gr.skip(), 0.0

        def shown() -> str:
            turn = [{"role": "user", "content": text}, {"role": "assistant", "content": written}]
            return chat_html([*(before or []), *turn], writing=True)

        yield gr.skip(), message("Opening the session…"), *[gr.skip()] * 4, *busy, *[gr.skip()] * 2
        with collect_errors() as errors:
            from streamlm.runtime.sampling import Sampling  # needs torch

            if not text.strip():
                raise ValueError("Type a message first.")
            shelf, visitor = app.shelf(request), visitor_id(request)
            engine = app.engine_of(shelf, name)
            sampling = Sampling(temperature=temperature, top_p=top_p, repetition_penalty=penalty)

            def work(job: Job) -> None:
                chatting.reply(
                    job,
                    shelf,
                    name,
                    message=text,
                    system=(system or "").strip() or None,  # None while its section is closed
                    sampling=sampling,
                    max_tokens=min(int(max_tokens), chatting.MAX_TOKENS),
                    engine=engine,
                    quotes=app.quotes,
                    recall=recall,
                )

            for events in app.jobs.stream(work, visitor=visitor):
                for event in events:
                    if isinstance(event, chatting.ReplyStarted):
                        before = event.before
                        snapshots = [*snapshots, (name, event.snapshot)]
                    elif isinstance(event, chatting.ReplyFinished):
                        finished = event
                    elif isinstance(event, Recollection):
                        panel = recalled_html(event)
                    else:
                        written += event
                if before is not None and time.monotonic() - updated > UPDATE_INTERVAL:
                    cleared = "" if not updated else gr.skip()
                    updated = time.monotonic()
                    cleared_at = cleared_at or updated
                    yield (
                        *(shown(), "", cleared),
                        *([gr.skip()] * 3),
                        *(*busy, snapshots, panel),
                    )
        undoable = gr.update(interactive=bool(snapshots))
        if before is None:  # refused: the message stays in its field
            status = errors[0] if errors else message("Stopped before the message was read.")
            yield gr.skip(), status, *[gr.skip()] * 4, *idle, undoable, snapshots, gr.skip()
            return
        summary = errors[0] if errors else message(_summary(finished))
        # A browser that is given two updates at once shows the second only.
        cleared = "" if time.monotonic() - cleared_at < 1 else gr.skip()
        choices = session_choices(shelf, name)
        position = saved_position_html(shelf, name)
        talk = chatting.talk_of(shelf, name, checkpoint=engine.checkpoint, quotes=app.quotes)
        yield (
            *(chat_html(talk), summary, cleared, position),
            *(model_choice(app, shelf, name), choices),
            *(*idle, undoable, snapshots, panel),
        )

    said_something = gr.on(
        [send.click, said.submit],
        talk,
        [
            *(frame.chosen, frame.session, said, system),
            *(length, temperature, top_p, penalty, recall, turns),
        ],
        outputs,
        **LONG,
        show_progress="hidden",
        api_visibility="private",
    )
    then_memory(app, frame, said_something)

    cancels_jobs(app, stop, status)

    def undo_last(snapshots: list[tuple[str, int]], request: gr.Request) -> Any:
        if not snapshots:
            return gr.skip(), message("There is nothing to undo."), *[gr.skip()] * 7, [], gr.skip()
        *earlier, (name, snapshot) = snapshots
        with collect_errors() as errors:
            shelf = app.shelf(request)
            engine = app.engine_of(shelf, name)
            turns = chatting.undo(shelf, name, snapshot=snapshot, engine=engine, quotes=app.quotes)
            position = shelf.history(name)[-1].position
            return (
                chat_html(turns),
                message(f"Undone: {name} is back at token {position:,}."),
                gr.skip(),
                position_html(name, position),
                gr.skip(),
                gr.Dropdown(value=name),
                *[gr.skip()] * 2,
                gr.update(interactive=bool(earlier)),
                earlier,
                "",
            )
        return gr.skip(), errors[0], *[gr.skip()] * 9

    undone = undo.click(
        undo_last, turns, outputs, api_visibility="private", **QUICK, show_progress="hidden"
    )
    then_memory(app, frame, undone)

    def show(name: str, request: gr.Request, model: str | None = None) -> tuple[Any, ...]:
        """Updates of `views`; `model` is that of a new session."""
        with collect_errors() as errors:
            if not name:  # the page is still loading; this runs again with a name
                return "", "", gr.skip(), "", ""
            shelf = app.shelf(request)
            if model is None or shelf.store(name) is not None:
                model = app.model_of(shelf, name)
            if not app.models.chats(model):
                return "", message(_no_chat(app, model)), gr.update(interactive=False), name, ""
            engine = app.engine_of(shelf, name)
            talk = chatting.talk_of(shelf, name, checkpoint=engine.checkpoint, quotes=app.quotes)
            about = message("" if talk else ABOUT)
            return chat_html(talk), about, gr.update(interactive=True), name, ""
        return "", errors[0], gr.skip(), name, ""

    def open_tab(name: str, shown: str, request: gr.Request) -> tuple[Any, ...]:
        page, status, button, name, panel = show(name, request)
        if page and name == shown:
            status = panel = gr.skip()
        return page, status, button, name, panel

    def change_session(
        chosen: Chosen, name: str, shown: str, request: gr.Request
    ) -> tuple[Any, ...]:
        chosen.session = name
        # A turn updates the list of sessions too, and has already shown the talk.
        if name == shown:
            return (gr.skip(),) * 8
        off = gr.update(interactive=False)
        return *show(name, request), off, off, []

    def change_model(name: str, model: str, request: gr.Request) -> tuple[Any, ...]:
        return show(name, request, model)

    views = [page, status, send, drawn, recalled]
    private: dict[str, Any] = {**QUICK, "show_progress": "hidden", "api_visibility": "private"}
    tab.select(open_tab, [frame.session, drawn], views, **private)
    others = [*views, stop, undo, turns]
    inputs = [frame.chosen, frame.session, drawn]
    frame.session.change(change_session, inputs, others, **private)
    frame.model.input(change_model, [frame.session, frame.model], views, **private)
    return tab


def _no_chat(app: AppState, model: str) -> str:
    """Why there is no chat, and what helps."""
    here = [name for name in app.models.names if name != model and app.models.chats(name)]
    missing = [name for name in chat_models() if name not in app.models.names]
    helps = (
        f"Begin a new session and choose {here[0]} as its model."
        if here
        else f"streamlm models get {missing[0]} downloads one that chats; then restart the demo."
        if missing
        else "Restart the demo with --model and a model that chats."
    )
    return f"{model} continues texts and does not chat. {helps}"


def _summary(finished: chatting.ReplyFinished | None) -> str:
    """A sentence on how a reply ended; "" if nothing is to be said."""
    if finished is None:
        return "Stopped. The session keeps the reply so far, and the chat goes on."
    return "" if finished.whole else "The reply reached its greatest length."
