"""The Compare tab: one text scored after two histories, and results of `streamlm compare`."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from apps.demo import reading, writing
from apps.demo.app_state import LONG, QUICK, AppState, visitor_id
from apps.demo.example import book
from apps.demo.jobs import Job
from apps.demo.render.curves import comparison_curves
from apps.demo.render.text_html import comparison_html, escape, message
from apps.demo.shelf import Shelf
from apps.demo.tabs.frame import Frame, collect_errors, optional_integer, parse_optional_integer
from apps.demo.uploads import checked

MAX_TEXT = 20_000  # characters compared at once
EXAMPLE = "example"  # the session of the example
EXAMPLE_BEGINS = 16_000  # characters of the bundled book that it reads at least
ABOUT_EXAMPLE = (
    "The session “example” has read the beginning of the bundled book. A has all of it in mind, B "
    "nothing (token 0): which of them expects the paragraphs that follow?"
)


def compare_tab(app: AppState, frame: Frame) -> gr.Tab:
    """Build the tab."""
    with gr.Tab("Compare", id="compare") as tab:
        gr.HTML(
            message(
                "How well does each of two histories predict a text? Each word has the colour of "
                "the history that predicts it better."
            )
        )
        text = gr.Textbox(label="Text", lines=4, max_lines=10, elem_id="compare-text")
        sides: list[Any] = []
        with gr.Row():
            for letter in "AB":
                with gr.Column(min_width=260):
                    session = gr.Dropdown(
                        [], label=f"{letter}: session", allow_custom_value=True,
                        elem_id=f"compare-{letter.lower()}",
                    )  # fmt: skip
                    sides += [session, optional_integer(f"{letter}: up to token", "the newest")]
        with gr.Row():
            start = gr.Button("Compare", variant="primary", elem_id="compare")
            example = gr.Button("Show an example", elem_id="compare-example")
        status = gr.HTML(elem_id="compare-status")
        page = gr.HTML(elem_id="compare-page")
        with gr.Accordion("Results of streamlm compare: heads and compressions", open=False):
            # A result may be gone by the time that it is chosen; Gradio would log a traceback.
            result = gr.Dropdown([], label="Comparison", allow_custom_value=True, elem_id="result")
            report = gr.HTML(elem_id="report")

    def open_tab(current: str, a: str | None, b: str | None, request: gr.Request) -> Any:
        with collect_errors():
            names = app.shelf(request).names()
            default = current if current in names else None
            return (
                gr.Dropdown(choices=names, value=a or default),
                gr.Dropdown(choices=names, value=b or default),
                gr.Dropdown(choices=sorted(find_reports(app.results)), value=None),
            )
        return [gr.skip()] * 3

    def compare(
        text: str,
        a: str | None,
        token_a: str,
        b: str | None,
        token_b: str,
        request: gr.Request,
    ) -> tuple[str, str]:
        with collect_errors() as errors:
            if not text.strip() or not a or not b:
                raise ValueError("Enter a text and choose two sessions; they may be the same.")
            if len(text) > MAX_TEXT:
                raise ValueError(
                    f"The text has {len(text):,} characters; allowed: at most {MAX_TEXT:,}."
                )
            checked(text, "The text")
            shelf = app.shelf(request)
            models = [app.model_of(shelf, name) for name in (a, b)]
            if models[0] != models[1]:
                raise ValueError(
                    f"{a} is a session of {models[0]}, {b} of {models[1]}; allowed: two of one "
                    "model."
                )
            engine = app.engine_of(shelf, a)
            points = [
                writing.ForkPoint(a, parse_optional_integer(token_a, "Token")),
                writing.ForkPoint(b, parse_optional_integer(token_b, "Token")),
            ]
            comparison = writing.compare(shelf, points, text=text, engine=engine)
            return _verdict_html(comparison), comparison_html(comparison.tokens)
        return errors[0], ""

    def show_example(request: gr.Request) -> Iterator[Any]:
        """Fill the fields with a comparison that shows what memory is worth, and compare."""
        yield message("Reading the beginning of the bundled book…"), *[gr.skip()] * 6
        with collect_errors() as errors:
            shelf = app.shelf(request)
            text, histories = _example(app, shelf, request)
            names = shelf.names()
            (a, token_a), (b, token_b) = histories
            left, right = (gr.Dropdown(choices=names, value=name) for name in (a, b))
            status, page = compare(text, a, token_a, b, token_b, request)
            yield f"{message(ABOUT_EXAMPLE)}{status}", page, text, left, token_a, right, token_b
            return
        yield errors[0] if errors else "", *[gr.skip()] * 6

    private: dict[str, Any] = {"api_visibility": "private"}
    histories = [sides[0], sides[2]]
    tab.select(open_tab, [frame.session, *histories], [*histories, result], **private)
    start.click(compare, [text, *sides], [status, page], **QUICK, **private)
    example.click(
        show_example, None, [status, page, text, *sides], **LONG, **private, show_progress="hidden"
    )
    result.change(lambda name: report_html(app.results, name), result, report, **private)
    return tab


def _example(app: AppState, shelf: Shelf, request: gr.Request) -> tuple[str, list[tuple[str, str]]]:
    """A passage of the bundled book, and two histories: all before it, and nothing.

    The session of the example is created on first use.

    Raises:
        Refused: it cannot be created or read.
    """
    before, text = example_parts()
    engine = app.engine_of(shelf, EXAMPLE)
    if not shelf.has(EXAMPLE):

        def work(job: Job) -> None:
            reading.read(job, shelf, EXAMPLE, text=before, engine=engine)

        for _ in app.jobs.stream(work, visitor=visitor_id(request)):
            pass
    # The newest point, not its token: what was read after the last whole word counts too.
    return text, [(EXAMPLE, ""), (EXAMPLE, "0")]


def example_parts() -> tuple[str, str]:
    """The beginning of the bundled book, and the paragraph that follows it."""
    paragraphs = book().split("\n\n")
    n = next(n for n in range(len(paragraphs)) if sum(map(len, paragraphs[:n])) > EXAMPLE_BEGINS)
    return "\n\n".join(paragraphs[:n]) + "\n\n", "\n\n".join(paragraphs[n : n + 3])


def _verdict_html(comparison: writing.Comparison) -> str:
    """The bits per byte after each history, and which is lower."""
    a, b = comparison.bits_per_byte
    difference = abs(a - b)
    verdict = (
        f"{'A' if a < b else 'B'} predicts the text better, by {difference:.3f} bits per byte."
        if difference
        else "There is no difference."
    )
    return (
        f'<p class="verdict" role="status"><b class="first">A: {a:.3f}</b> and '
        f'<b class="second">B: {b:.3f}</b> bits per byte. {verdict}</p>'
    )


def find_reports(folder: str) -> dict[str, Path]:
    """The results of `streamlm compare` in a folder, by name: HTML reports, or else plots."""
    reports: dict[str, Path] = {}
    for kind in (".png", ".html"):  # a report replaces its plot
        for path in Path(folder).glob(f"*{kind}"):
            if path.with_suffix(".json").exists() and not path.name.startswith("."):
                reports[path.stem] = path
    return reports


def report_html(folder: str, name: str | None) -> str:
    """Interactive curves, and the report in a sandboxed frame, or its plot; "" if unknown."""
    path = find_reports(folder).get(name or "")
    if path is None:
        return ""
    curves = comparison_curves(path.with_suffix(".json"))
    if path.suffix == ".html":
        source = escape(path.read_text(encoding="utf-8"))
        frame = f'<iframe class="report" sandbox="" srcdoc="{source}" title="{escape(name)}">'
        return f"{curves}{frame}</iframe>"
    data = base64.b64encode(path.read_bytes()).decode()
    return f'{curves}<img class="report" src="data:image/png;base64,{data}" alt="{escape(name)}">'
