"""The Compare tab: one text after two histories, curves, and sandboxed reports."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

from apps.demo.tabs.compare import find_reports, report_html
from tests.support.demo_server import ROOT, DemoServer, Visit
from tests.support.html_tags import Tags


def summary_of(name: str) -> list[Any]:
    file = ROOT / f"benchmarks/results/{name}.json"
    rows: list[Any] = json.loads(file.read_text(encoding="utf-8"))["figures"]["summary"]
    return rows


@pytest.mark.browser
def test_one_text_after_two_histories(visit: Visit, prose: Any) -> None:
    visitor = visit()
    visitor.read(prose(80))
    visitor.compare_tab()
    visitor.page.get_by_label("Text", exact=True).last.fill("<i>whale</i> and the sea")
    visitor.page.get_by_label("B: up to token").fill("5")
    visitor.page.locator("button#compare").click()
    verdict = visitor.wait_for("compare-status", "bits per byte")
    assert re.search(r"A: \d+\.\d{3} and B: \d+\.\d{3} bits per byte", verdict)
    page = visitor.page.locator("#compare-page .page")
    assert page.inner_text() == "<i>whale</i> and the sea" and page.locator("i").count() == 0
    assert page.locator("span.first, span.second").count() > 4
    visitor.page.get_by_label("B: up to token").fill("999999")
    visitor.page.locator("button#compare").click()
    visitor.wait_for("compare-status", "tokens = 999999; allowed: 0 to")
    visitor.page.locator("#compare-example").click()
    shown = visitor.wait_for("compare-status", r"The session “example” has read[^✗]*bits per byte")
    assert re.search(r"A: \d\.\d+ and B: \d\.\d+", shown)
    assert visitor.page.locator("#compare-a input").input_value() == "example"


@pytest.mark.browser
def test_curves_show_values_at_the_pointer(visit: Visit, server: DemoServer) -> None:
    results = Path("benchmarks/results")
    (server.store.parent / results).mkdir(parents=True)
    for name in ("heads-compare-small.html", "heads-compare-small.json",
                 "ablation-small-books.png", "ablation-small-books.json"):  # fmt: skip
        (server.store.parent / results / name).write_bytes((ROOT / results / name).read_bytes())
    page = visit().page
    page.get_by_role("tab", name="Compare").click()
    page.get_by_text("Results of streamlm compare").click()
    page.get_by_label("Comparison").click()
    page.get_by_role("option", name="heads-compare-small").click()
    figure = page.locator("figure.curves").nth(1)
    figure.locator("svg").hover(position={"x": 60, "y": 60})
    assert "segments between cue and query: " in figure.locator("figcaption").inner_text()
    figure.focus()
    captions = []
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
        captions.append(figure.locator("figcaption").inner_text())
        assert figure.locator(".names .on").inner_text() == captions[-1].split(" · ")[0]
    assert len(set(captions)) == 4
    assert page.locator("iframe.report").count() == 1
    # Another comparison is drawn in place: the curves show its values.
    figure = page.locator("figure.curves").first
    figure.locator("svg").hover(position={"x": 60, "y": 30})
    first = figure.locator("figcaption b").inner_text()
    page.get_by_label("Comparison").click()
    page.get_by_role("option", name="ablation-small-books").click()
    page.locator("img.report").wait_for()
    names = {row["variant"] for row in summary_of("ablation-small-books")}
    assert first in {row["variant"] for row in summary_of("heads-compare-small")} - names
    assert set(figure.locator(".names span").all_inner_texts()) <= names
    figure.locator("svg").hover(position={"x": 61, "y": 32})
    assert figure.locator("figcaption b").inner_text() in names


def test_reports_run_no_scripts(tmp_path: Path) -> None:
    for name in ("heads.html", "heads.json", "heads.png", "other.png", "ablation.json", ".x.png"):
        (tmp_path / name).write_text(f"<script>alert(1)</script> {{{{name}}}} {name}")
    (tmp_path / "ablation.png").write_bytes(b"png")
    assert set(find_reports(str(tmp_path))) == {"heads", "ablation"}
    drawn = report_html(str(tmp_path), "heads")
    assert Tags(drawn).tags == {"iframe"} and 'sandbox=""' in drawn and "{{" not in drawn
    assert Tags(report_html(str(tmp_path), "ablation")).tags == {"img"}
    for name in (None, "nothing", "../heads", "heads.html"):
        assert report_html(str(tmp_path), name) == ""
    assert find_reports(str(tmp_path / "nowhere")) == {}
