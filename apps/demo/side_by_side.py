"""The same words, written on from two points, seeds or temperatures. Nothing is kept of it."""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from apps.demo import writing
from apps.demo.desk import LONG, Desk, visitor
from apps.demo.frame import Frame, number, optional, refusals
from apps.demo.words import message, with_choices
from apps.demo.work import Job
from streamlm.runtime.reports import TokenLogprob

OFTEN = 0.2  # seconds between two updates of the page


def side_by_side(desk: Desk, frame: Frame) -> None:
    """Build this part of the tab that writes."""
    with gr.Accordion("Side by side: the same beginning from two forks", open=False):
        words = gr.Textbox(label="Begin both with", lines=1, value="And then")
        sides, pages = [], []
        with gr.Row():
            for letter, first in (("A", 1), ("B", 2)):
                with gr.Column(min_width=280):
                    at = optional(f"{letter}: from token", "the newest")
                    with gr.Row():
                        heat = gr.Slider(0, 2, value=0.8, step=0.05, label=f"{letter}: temperature")
                        seed = optional(f"{letter}: seed", "the session's own", value=str(first))
                    sides += [at, heat, seed]
                    pages.append(gr.HTML(elem_id=f"side-{letter.lower()}"))
        length = gr.Slider(1, 300, value=60, step=1, label="Tokens each")
        with gr.Row():
            begin = gr.Button("Write both", elem_id="write-both")
            stop = gr.Button("Stop", elem_id="stop-both")
        said = gr.HTML(elem_id="both-said")

    def write_both(
        name: str,
        prompt: str,
        max_tokens: float,
        at_a: str,
        heat_a: float,
        seed_a: str,
        at_b: str,
        heat_b: float,
        seed_b: str,
        request: gr.Request,
    ) -> Iterator[Any]:
        written: tuple[list[TokenLogprob], list[TokenLogprob]] = ([], [])
        last = 0.0

        def shown() -> list[str]:
            return [with_choices(side, prompt=prompt) for side in written]

        yield message("Opening…"), "", ""
        with refusals() as told:
            shelf, checkpoint = desk.shelf(request), desk.checkpoint
            both = [
                writing.Side(name, number(at_a, "Token"), heat_a, number(seed_a, "Seed")),
                writing.Side(name, number(at_b, "Token"), heat_b, number(seed_b, "Seed")),
            ]

            def work(job: Job) -> None:
                writing.write_both(
                    job,
                    shelf,
                    both,
                    prompt=prompt,
                    max_tokens=int(max_tokens),
                    checkpoint=checkpoint,
                )

            for items in desk.jobs.run(work, visitor=visitor(request)):
                for index, choice in items:
                    written[index].append(choice)
                if time.monotonic() - last > OFTEN:
                    last = time.monotonic()
                    yield ("", *shown())
            told.append(message("Neither is part of the session."))
        yield (told[0], *shown()) if written[0] else (told[0], "", "")

    begin.click(
        write_both,
        [frame.session, words, length, *sides],
        [said, *pages],
        **LONG,
        show_progress="hidden",
        api_visibility="private",
    )

    def halt(request: gr.Request) -> str:
        return message("Stopping…") if desk.jobs.stop(visitor(request)) else ""

    stop.click(halt, None, said, queue=False, api_visibility="private")
