"""The Remember tab in a browser: slots, their passages, and redrawing."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.demo_server import Visit

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

pytestmark = pytest.mark.browser


def test_a_slot_tells_its_passage(visit: Visit, prose: Any) -> None:
    visitor = visit()
    visitor.read(prose(200))
    visitor.tab("Remember")
    assert "100%" in visitor.said("curve", "has no slot any more")
    picture = visitor.page.locator("#memory figure.memory")
    picture.locator("svg").click(position={"x": 5, "y": 8})
    assert re.search(
        r"Compressed slot · layer 1 · 4 tokens · \d+ tokens ago · .* % of attention · \d+ % lost",
        picture.locator("figcaption").inner_text(),
    )
    assert picture.locator("figcaption mark").inner_text().strip() in prose(200)
    first = picture.locator("mark.x, rect.mark").get_attribute("x")
    picture.focus()
    visitor.page.keyboard.press("ArrowRight")
    visitor.page.keyboard.press("ArrowDown")
    assert "layer 2" in picture.locator("figcaption").inner_text()
    assert picture.locator("rect.mark").get_attribute("x") != first


def test_the_memory_is_redrawn_while_reading(visit: Visit, long: Path) -> None:
    visitor = visit()
    visitor.read_file(long)
    visitor.said("read-bar", "tokens/s")
    visitor.tab("Remember")
    at = "JSON.parse(document.querySelector('#memory figure')?.dataset.memory ?? '{}').position"
    newest, columns = 0, list[int]()
    for _ in range(3):  # opening the tab draws it once
        visitor.page.wait_for_function(f"(newest) => {at} > newest", arg=newest)
        newest = visitor.page.evaluate(at)
        if not columns:
            visitor.page.locator("#memory figure").focus()
        visitor.page.keyboard.press("ArrowLeft")
        columns.append(int(visitor.page.locator("#memory rect.mark").get_attribute("x")))
    # Who walks along the slots walks on in the new picture.
    assert columns[0] > columns[1] > columns[2]
    visitor.tab("Read")
    visitor.page.locator("#stop-reading").click()
    visitor.said("read-said", "Stopped. What was read is saved")
