"""The tab that writes: token by token, with what else was likely, and from two forks at once."""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from apps.demo import writing
from apps.demo.desk import LONG, QUICK, Desk, visitor
from apps.demo.frame import (
    Frame,
    choices,
    number,
    optional,
    refusals,
    stand,
    standing,
    strip_of,
)
from apps.demo.side_by_side import side_by_side
from apps.demo.words import message, with_choices
from streamlm.runtime.reports import TokenLogprob

OFTEN = 0.15  # seconds between two updates of the page


def write_tab(desk: Desk, frame: Frame) -> None:
    """Build the tab."""
    prompt = gr.Textbox(
        label="Begin with", lines=2, placeholder="Empty: go on where the session stands"
    )
    with gr.Row():
        begin = gr.Button("Write on", variant="primary", elem_id="write")
        stop = gr.Button("Stop", interactive=False, elem_id="stop-writing")
        undo = gr.Button("Undo", interactive=False, elem_id="undo")
    with gr.Accordion("Sampling", open=False):
        with gr.Row():
            length = gr.Slider(1, writing.MAX_TOKENS, value=120, step=1, label="Tokens")
            temperature = gr.Slider(0, 2, value=0.8, step=0.05, label="Temperature (0: greedy)")
            top_p = gr.Slider(0.05, 1, value=0.95, step=0.05, label="Top p (1: off)")
        with gr.Row():
            top_k = gr.Slider(0, 200, value=0, step=1, label="Top k (0: off)")
            min_p = gr.Slider(0, 0.5, value=0, step=0.01, label="Min p (0: off)")
            penalty = gr.Slider(1, 2, value=1, step=0.05, label="Repetition penalty (1: off)")
            seed = optional("Seed", "go on with the session's own")
        stops = gr.Textbox(
            label="Stop before any of these texts",
            info=r"One on each line; \n stands for a new line.",
            lines=2,
            placeholder="Nothing: stop after so many tokens",
        )
    said = gr.HTML(elem_id="write-said")
    page = gr.HTML(elem_id="write-page")
    before = gr.State([])  # (session, snapshot) before each writing, for undo
    outputs = [said, page, frame.standing, frame.strip, frame.session, begin, stop, undo, before]

    def write(
        name: str,
        words: str,
        max_tokens: float,
        temperature: float,
        top_p: float,
        top_k: float,
        min_p: float,
        penalty: float,
        seed: str,
        stops: str,
        undone: list[tuple[str, int]],
        request: gr.Request,
    ) -> Iterator[Any]:
        busy = [gr.update(interactive=on) for on in (False, True, False)]
        yield (message("Opening…"), "", *[gr.skip()] * 3, *busy, gr.skip())
        written: list[TokenLogprob] = []
        begun, end, last = writing.Begun(0, ""), writing.Written(0, ""), 0.0
        line: Any = gr.skip()
        picture: Any = gr.skip()
        with refusals() as told:
            from streamlm.runtime.sampling import Sampling  # needs torch

            shelf, checkpoint, fresh = desk.shelf(request), desk.checkpoint, number(seed, "Seed")
            ends = writing.stops_of(stops or "")
            sampling = Sampling(
                repetition_penalty=penalty,
                temperature=temperature,
                top_k=int(top_k),
                top_p=top_p,
                min_p=min_p,
            )

            def work(job: Any) -> None:
                writing.write(
                    job,
                    shelf,
                    name,
                    prompt=words or "",
                    sampling=sampling,
                    max_tokens=min(int(max_tokens), writing.MAX_TOKENS),
                    stops=ends,
                    seed=fresh,
                    checkpoint=checkpoint,
                )

            for items in desk.jobs.run(work, visitor=visitor(request)):
                for item in items:
                    if isinstance(item, TokenLogprob):
                        written.append(item)
                    elif isinstance(item, writing.Begun):
                        begun = item
                        undone = [*undone, (name, begun.snapshot)]
                    else:
                        end = item
                if end.position or time.monotonic() - last > OFTEN:
                    last = time.monotonic()
                    shown = with_choices(written, before=begun.before, prompt=words)
                    yield ("", shown, *[gr.skip()] * 3, *busy, undone)
            if end.position and len(written) < int(max_tokens):
                note = f"Wrote {len(written)} tokens, up to a text to stop at."
            elif end.position:
                note = f"Wrote {len(written)} tokens; point at one to see what else was likely."
            else:
                note = f"Stopped after {len(written)} tokens, which are part of the session."
            told.append(message(note))
            line = stand(shelf, name)
            picture = end.picture or strip_of(desk, shelf, name, visitor=visitor(request))
        known = choices(shelf, name) if begun.before or written else gr.skip()
        shown = with_choices(written, before=begun.before, prompt=words) if written else gr.skip()
        rest = [gr.update(interactive=on) for on in (True, False, bool(undone))]
        yield (told[0], shown, line, picture, known, *rest, undone)

    controls = [length, temperature, top_p, top_k, min_p, penalty, seed, stops]
    gr.on(
        [begin.click, prompt.submit],
        write,
        [frame.session, prompt, *controls, before],
        outputs,
        **LONG,
        show_progress="hidden",
        api_visibility="private",
    )

    def halt(request: gr.Request) -> str:
        return message("Stopping…") if desk.jobs.stop(visitor(request)) else ""

    stop.click(halt, None, said, queue=False, api_visibility="private")

    def take_back(undone: list[tuple[str, int]], request: gr.Request) -> Any:
        if not undone:
            return (message("There is nothing to undo."), *[gr.skip()] * 7, [])
        *rest, (name, snapshot) = undone
        with refusals() as told:
            shelf, checkpoint = desk.shelf(request), desk.checkpoint

            def work(job: Any) -> Any:
                return writing.take_back(job, shelf, name, snapshot=snapshot, checkpoint=checkpoint)

            position, text, picture = desk.jobs.do(work, visitor=visitor(request))
            return (
                message(f"{name} is back at token {position:,}, as if it had not been written."),
                with_choices([], before=text),
                standing(name, position),
                picture or gr.skip(),
                gr.Dropdown(value=name),
                gr.skip(),
                gr.skip(),
                gr.update(interactive=bool(rest)),
                rest,
            )
        return (told[0], *[gr.skip()] * 8)

    undo.click(
        take_back, before, outputs, api_visibility="private", **QUICK,
        show_progress="hidden",
    )  # fmt: skip
    side_by_side(desk, frame)
