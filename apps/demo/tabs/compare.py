"""The Compare tab: one text scored after two histories, and results of `streamlm compare`."""

import base64
from pathlib import Path
from typing import Any

import gradio as gr

from apps.demo import writing
from apps.demo.app_state import QUICK, AppState
from apps.demo.render.curves import comparison_curves
from apps.demo.render.text_html import comparison_html, escape, message
from apps.demo.tabs.frame import Frame, collect_errors, optional_integer, parse_optional_integer
from apps.demo.uploads import checked

MAX_TEXT = 20_000  # characters compared at once


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
        start = gr.Button("Compare", variant="primary", elem_id="compare")
        status = gr.HTML(elem_id="compare-status")
        page = gr.HTML(elem_id="compare-page")
        with gr.Accordion("Results of streamlm compare: heads and compressions", open=False):
            result = gr.Dropdown([], label="Comparison", elem_id="result")
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

    private: dict[str, Any] = {"api_visibility": "private"}
    histories = [sides[0], sides[2]]
    tab.select(open_tab, [frame.session, *histories], [*histories, result], **private)
    start.click(compare, [text, *sides], [status, page], **QUICK, **private)
    result.change(lambda name: report_html(app.results, name), result, report, **private)
    return tab


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
