"""Side by side: one prompt, continued by two temporary forks with different settings."""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from apps.demo import writing
from apps.demo.app_state import LONG, AppState, visitor_id
from apps.demo.jobs import Job
from apps.demo.render.text_html import generated_html, message
from apps.demo.tabs.frame import (
    Frame,
    cancels_jobs,
    collect_errors,
    optional_integer,
    parse_optional_integer,
)
from streamlm.runtime.reports import TokenLogprob

UPDATE_INTERVAL = 0.2  # seconds between two updates of the page


def side_by_side(app: AppState, frame: Frame) -> None:
    """Build this section of the Write tab."""
    with gr.Accordion("Side by side: one prompt, two forks", open=False):
        prompt = gr.Textbox(label="Prompt for both", lines=1, value="And then")
        settings, pages = [], []
        with gr.Row():
            for letter, first_seed in (("A", 1), ("B", 2)):
                with gr.Column(min_width=280):
                    token = optional_integer(f"{letter}: fork at token", "the newest")
                    with gr.Row():
                        temperature = gr.Slider(
                            0, 2, value=0.8, step=0.05, label=f"{letter}: temperature"
                        )
                        seed = optional_integer(
                            f"{letter}: seed", "the session's own", value=str(first_seed)
                        )
                    settings += [token, temperature, seed]
                    pages.append(gr.HTML(elem_id=f"side-{letter.lower()}"))
        length = gr.Slider(1, 300, value=60, step=1, label="Tokens each")
        with gr.Row():
            start = gr.Button("Generate both", elem_id="write-both")
            stop = gr.Button("Stop", elem_id="stop-both", interactive=False)
        status = gr.HTML(elem_id="both-status")

    def write_both(
        name: str,
        prompt: str,
        max_tokens: float,
        token_a: str,
        temperature_a: float,
        seed_a: str,
        token_b: str,
        temperature_b: float,
        seed_b: str,
        request: gr.Request,
    ) -> Iterator[Any]:
        generated: tuple[list[TokenLogprob], list[TokenLogprob]] = ([], [])
        updated = 0.0

        def shown() -> list[str]:
            return [generated_html(side, prompt=prompt) for side in generated]

        busy, idle = (
            [gr.update(interactive=on) for on in (start_on, not start_on)]
            for start_on in (False, True)
        )
        yield message("Opening the session…"), "", "", *busy
        with collect_errors() as messages:
            shelf = app.shelf(request)
            engine = app.engine_of(shelf, name)
            points = [
                writing.ForkPoint(
                    name,
                    parse_optional_integer(token, "Token"),
                    temperature,
                    parse_optional_integer(seed, "Seed"),
                )
                for token, temperature, seed in (
                    (token_a, temperature_a, seed_a),
                    (token_b, temperature_b, seed_b),
                )
            ]

            def work(job: Job) -> None:
                writing.write_forks(
                    job,
                    shelf,
                    points,
                    prompt=prompt,
                    max_tokens=min(int(max_tokens), writing.MAX_TOKENS),
                    engine=engine,
                )

            for events in app.jobs.stream(work, visitor=visitor_id(request)):
                for index, token in events:
                    generated[index].append(token)
                if time.monotonic() - updated > UPDATE_INTERVAL:
                    updated = time.monotonic()
                    yield ("", *shown(), *busy)
            messages.append(message("The session itself is unchanged."))
        yield messages[0], *(shown() if generated[0] else ["", ""]), *idle

    start.click(
        write_both,
        [frame.session, prompt, length, *settings],
        [status, *pages, start, stop],
        **LONG,
        show_progress="hidden",
        api_visibility="private",
    )

    cancels_jobs(app, stop, status)
