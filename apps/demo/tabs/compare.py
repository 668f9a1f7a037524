"""The tab that compares: one text after two pasts, and the plots of the laboratory."""

import html
from pathlib import Path
from typing import Any

import gradio as gr

from apps.demo import writing
from apps.demo.app_state import QUICK, Desk, visitor
from apps.demo.jobs import Job
from apps.demo.render.curves import curves
from apps.demo.render.text_html import beside, message, safe
from apps.demo.tabs.frame import Frame, number, optional, refusals
from apps.demo.uploads import checked

MAX_TEXT = 20_000  # characters that are compared at once


def compare_tab(desk: Desk, frame: Frame) -> gr.Tab:
    """Build the tab."""
    with gr.Tab("Compare", id="compare") as tab:
        gr.HTML(
            message(
                "How likely is a text after one past, and how likely after another? Words that A "
                "found likelier have one colour, those that B found likelier the other."
            )
        )
        text = gr.Textbox(label="Text", lines=4, max_lines=10, elem_id="compare-text")
        sides: list[Any] = []
        with gr.Row():
            for letter in "AB":
                with gr.Column(min_width=260):
                    name = gr.Dropdown(
                        [], label=f"{letter}: session", allow_custom_value=True,
                        elem_id=f"compare-{letter.lower()}",
                    )  # fmt: skip
                    at = optional(f"{letter}: at token", "the newest")
                    sides += [name, at]
        begin = gr.Button("Compare", variant="primary", elem_id="compare")
        said = gr.HTML(elem_id="compare-said")
        page = gr.HTML(elem_id="compare-page")
        with gr.Accordion("The laboratory: heads and compressions beside each other", open=False):
            found = gr.Dropdown([], label="Comparison", elem_id="laboratory")
            report = gr.HTML(elem_id="laboratory-report")

    def opened(here: str, first: str | None, second: str | None, request: gr.Request) -> Any:
        with refusals():
            names = desk.shelf(request).names()
            results = sorted(reports(desk.results))
            return (
                gr.Dropdown(choices=names, value=first or (here if here in names else None)),
                gr.Dropdown(choices=names, value=second or (here if here in names else None)),
                gr.Dropdown(choices=results, value=None),
            )
        return [gr.skip()] * 3

    def compared(
        words: str,
        a: str | None,
        at_a: str,
        b: str | None,
        at_b: str,
        request: gr.Request,
    ) -> tuple[str, str]:
        with refusals() as told:
            if not words.strip() or not a or not b:
                raise ValueError("Give a text, and two sessions; they may be the same one.")
            if len(words) > MAX_TEXT:
                raise ValueError(
                    f"The text has {len(words):,} characters; allowed: at most {MAX_TEXT:,}."
                )
            checked(words, "The text")
            shelf, checkpoint = desk.shelf(request), desk.checkpoint
            both = [
                writing.Side(a, number(at_a, "Token")),
                writing.Side(b, number(at_b, "Token")),
            ]

            def work(job: Job) -> writing.Beside:
                return writing.compare(job, shelf, both, text=words, checkpoint=checkpoint)

            result: writing.Beside = desk.jobs.do(work, visitor=visitor(request))
            return _verdict(result), beside(result.words)
        return told[0], ""

    private: dict[str, Any] = {"api_visibility": "private"}
    tab.select(opened, [frame.session, sides[0], sides[2]], [sides[0], sides[2], found], **private)
    begin.click(compared, [text, *sides], [said, page], **QUICK, **private)
    found.change(lambda name: show_report(desk.results, name), found, report, **private)
    return tab


def _verdict(result: writing.Beside) -> str:
    """Which past makes the text likelier."""
    a, b = result.bits_per_byte
    saved = abs(a - b)
    winner = "after A" if a < b else "after B"
    better = (
        f"It is likelier {winner}, by {saved:.3f} bits per byte." if saved else "No difference."
    )
    return (
        f'<p class="verdict" role="status"><b class="first">A: {a:.3f}</b> and '
        f'<b class="second">B: {b:.3f}</b> bits per byte. {better}</p>'
    )


def reports(folder: str) -> dict[str, Path]:
    """What `streamlm compare` has found, by name: reports, or pictures where there is none."""
    found: dict[str, Path] = {}
    for kind in (".png", ".html"):  # a report is preferred to its picture
        for path in Path(folder).glob(f"*{kind}"):
            if path.with_suffix(".json").exists() and not path.name.startswith("."):
                found[path.stem] = path
    return found


def show_report(folder: str, name: str | None) -> str:
    """Curves to touch, and a report in a frame of its own that runs nothing, or a picture."""
    path = reports(folder).get(name or "")
    if path is None:
        return ""
    touched = curves(path.with_suffix(".json"))
    if path.suffix == ".html":
        source = html.escape(path.read_text(encoding="utf-8"))
        for character in "{}$`\\":
            source = source.replace(character, f"&#{ord(character)};")
        frame = f'<iframe class="report" sandbox="" srcdoc="{source}" title="{safe(name)}">'
        return f"{touched}{frame}</iframe>"
    import base64

    data = base64.b64encode(path.read_bytes()).decode()
    picture = f'<img src="data:image/png;base64,{data}" alt="{safe(name)}" style="max-width:100%">'
    return touched + picture
