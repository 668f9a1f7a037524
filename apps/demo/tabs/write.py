"""The Write tab: generated text with alternatives for each token, undo, and two forks."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from apps.demo import writing
from apps.demo.app_state import LONG, QUICK, AppState, visitor_id
from apps.demo.jobs import Job
from apps.demo.render.recall_html import Recollection, recalled_html
from apps.demo.render.text_html import generated_html, message
from apps.demo.tabs.frame import (
    Frame,
    cancels_jobs,
    collect_errors,
    cumulative,
    model_choice,
    optional_integer,
    parse_optional_integer,
    position_html,
    recall_choice,
    saved_position_html,
    session_choices,
    then_memory,
)
from apps.demo.tabs.side_by_side import side_by_side
from streamlm.runtime.reports import TokenLogprob

UPDATE_INTERVAL = 0.15  # seconds between two updates of the page


def write_tab(app: AppState, frame: Frame) -> None:
    """Build the tab."""
    prompt = gr.Textbox(
        label="Prompt",
        lines=2,
        placeholder="Empty: continue from what the session has read",
    )
    with gr.Row():
        start = gr.Button("Generate", variant="primary", elem_id="write")
        stop = gr.Button("Stop", interactive=False, elem_id="stop-writing")
        undo = gr.Button("Undo", interactive=False, elem_id="undo")
    recall = recall_choice(0, "prompt", "write-recall")
    with gr.Accordion("Sampling", open=False):
        with gr.Row():
            length = _slider("Tokens", 1, writing.MAX_TOKENS, value=120, step=1)
            temperature = _slider("Temperature (0: greedy)", 0, 2, value=0.8)
            top_p = _slider("Top-p (1: off)", 0.05, 1, value=0.95)
        with gr.Row():
            top_k = _slider("Top-k (0: off)", 0, 200, value=0, step=1)
            min_p = _slider("Min-p (0: off)", 0, 0.5, value=0, step=0.01)
            penalty = _slider("Repetition penalty (1: off)", 1, 2, value=1)
        seed = optional_integer("Seed", "the session's own")
        stops = gr.Textbox(
            label="Stop strings",
            info=r"One per line; \n stands for a line break.",
            lines=2,
            placeholder="None: generate the full number of tokens",
        )
    status = gr.HTML(elem_id="write-status")
    page = gr.HTML(elem_id="write-page")
    recalled = gr.HTML(elem_id="write-recalled")
    history = gr.State([])  # (session, snapshot) before each generation, for undo
    outputs = [status, page, frame.position, frame.model]
    outputs += [frame.session, start, stop, undo, history, recalled]

    @cumulative
    def write(
        name: str,
        prompt: str,
        max_tokens: float,
        temperature: float,
        top_p: float,
        top_k: float,
        min_p: float,
        penalty: float,
        seed: str | None,
        stops: str | None,
        recall: int,
        snapshots: list[tuple[str, int]],
        request: gr.Request,
    ) -> Iterator[Any]:
        busy = [gr.update(interactive=on) for on in (False, True, False)]
        yield (message("Opening the session…"), "", *[gr.skip()] * 3, *busy, gr.skip(), "")
        generated: list[TokenLogprob] = []
        started, finished = writing.WriteStarted(0, ""), writing.WriteFinished(0)
        updated, panel = 0.0, ""
        position_update: Any = gr.skip()
        with collect_errors() as messages:
            from streamlm.runtime.sampling import Sampling  # needs torch

            shelf = app.shelf(request)
            engine = app.engine_of(shelf, name)
            fixed_seed = parse_optional_integer(seed, "Seed")
            stop_strings = writing.parse_stops(stops or "")  # None while its section is closed
            sampling = Sampling(
                repetition_penalty=penalty,
                temperature=temperature,
                top_k=int(top_k),
                top_p=top_p,
                min_p=min_p,
            )

            def work(job: Job) -> None:
                writing.write(
                    job,
                    shelf,
                    name,
                    prompt=prompt or "",
                    sampling=sampling,
                    max_tokens=min(int(max_tokens), writing.MAX_TOKENS),
                    stops=stop_strings,
                    seed=fixed_seed,
                    engine=engine,
                    recall=recall,
                )

            for events in app.jobs.stream(work, visitor=visitor_id(request)):
                for event in events:
                    if isinstance(event, TokenLogprob):
                        generated.append(event)
                    elif isinstance(event, Recollection):
                        panel = recalled_html(event)
                        if event.passages:  # they stand between the text and the prompt
                            started = replace(started, before=f"{started.before}\n\n…\n\n")
                    elif isinstance(event, writing.WriteStarted):
                        started = event
                        snapshots = [*snapshots, (name, started.snapshot)]
                    else:
                        finished = event
                if finished.position or time.monotonic() - updated > UPDATE_INTERVAL:
                    updated = time.monotonic()
                    text = generated_html(generated, before=started.before, prompt=prompt)
                    yield ("", text, *[gr.skip()] * 3, *busy, snapshots, panel)
            messages.append(message(_summary(len(generated), int(max_tokens), finished)))
            position_update = saved_position_html(shelf, name)
        changed = bool(started.before or generated)
        text_update = (
            generated_html(generated, before=started.before, prompt=prompt)
            if generated
            else gr.skip()
        )
        idle = [gr.update(interactive=on) for on in (True, False, bool(snapshots))]
        yield (
            messages[0],
            text_update,
            position_update,
            model_choice(app, shelf, name) if changed else gr.skip(),
            session_choices(shelf, name) if changed else gr.skip(),
            *idle,
            snapshots,
            panel,
        )

    controls = [length, temperature, top_p, top_k, min_p, penalty, seed, stops, recall]
    written = gr.on(
        [start.click, prompt.submit],
        write,
        [frame.session, prompt, *controls, history],
        outputs,
        **LONG,
        show_progress="hidden",
        api_visibility="private",
    )
    then_memory(app, frame, written)

    cancels_jobs(app, stop, status)

    def undo_last(snapshots: list[tuple[str, int]], request: gr.Request) -> Any:
        if not snapshots:
            return (message("There is nothing to undo."), *[gr.skip()] * 7, [], gr.skip())
        *earlier, (name, snapshot) = snapshots
        with collect_errors() as errors:
            shelf = app.shelf(request)
            engine = app.engine_of(shelf, name)
            position, text = writing.undo(shelf, name, snapshot=snapshot, engine=engine)
            return (
                message(f"Undone: {name} is back at token {position:,}."),
                generated_html([], before=text),
                position_html(name, position),
                gr.skip(),
                gr.Dropdown(value=name),
                gr.skip(),
                gr.skip(),
                gr.update(interactive=bool(earlier)),
                earlier,
                "",
            )
        return (errors[0], *[gr.skip()] * 9)

    undone = undo.click(
        undo_last, history, outputs, api_visibility="private", **QUICK,
        show_progress="hidden",
    )  # fmt: skip
    then_memory(app, frame, undone)
    side_by_side(app, frame)


def _slider(label: str, low: float, high: float, *, value: float, step: float = 0.05) -> gr.Slider:
    """A slider wide enough for its label and its number."""
    return gr.Slider(low, high, value=value, step=step, label=label, min_width=240)


def _summary(n: int, max_tokens: int, finished: writing.WriteFinished) -> str:
    """A sentence on a generation of `n` tokens."""
    if not finished.position:
        if not n:
            return "Stopped. The session keeps what was read of the prompt."
        return f"Stopped. The session keeps the {n} tokens generated so far."
    if n < max_tokens:
        return f"Generated {n} tokens, up to a stop string."
    return f"Generated {n} tokens. Point at one to see its alternatives."
