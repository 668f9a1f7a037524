"""The Remember tab in a browser: slots, their passages, and live updates."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.demo_server import Visit

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

pytestmark = pytest.mark.browser


def test_a_slot_shows_its_passage(visit: Visit, prose: Any) -> None:
    visitor = visit()
    visitor.read(prose(200))
    visitor.tab("Remember")
    assert "100%" in visitor.wait_for("curve", "no longer has a slot")
    figure = visitor.page.locator("#memory figure.memory")
    figure.locator("svg").click(position={"x": 5, "y": 8})
    assert re.search(
        r"Compressed slot · layer 1 · 4 tokens · \d+ tokens ago · .*% of attention · \d+% lost",
        figure.locator("figcaption").inner_text(),
    )
    assert figure.locator("figcaption mark").inner_text().strip() in prose(200)
    first = figure.locator("mark.x, rect.mark").get_attribute("x")
    figure.focus()
    visitor.page.keyboard.press("ArrowRight")
    visitor.page.keyboard.press("ArrowDown")
    assert "layer 2" in figure.locator("figcaption").inner_text()
    assert figure.locator("rect.mark").get_attribute("x") != first


def test_the_memory_updates_while_reading(visit: Visit, long: Path) -> None:
    visitor = visit()
    visitor.read_file(long)
    visitor.wait_for("read-bar", "tokens/s")
    visitor.tab("Remember")
    position = (
        "JSON.parse(document.querySelector('#memory figure')?.dataset.memory ?? '{}').position"
    )
    newest, columns = 0, list[int]()
    for _ in range(3):  # the first is drawn on opening the tab
        visitor.page.wait_for_function(f"(newest) => {position} > newest", arg=newest)
        newest = visitor.page.evaluate(position)
        if not columns:
            visitor.page.locator("#memory figure").focus()
        visitor.page.keyboard.press("ArrowLeft")
        columns.append(int(visitor.page.locator("#memory rect.mark").get_attribute("x")))
    # The keyboard selection survives the update.
    assert columns[0] > columns[1] > columns[2]
    visitor.tab("Read")
    visitor.page.locator("#stop-reading").click()
    visitor.wait_for("read-status", "Stopped. Everything read so far is saved")
