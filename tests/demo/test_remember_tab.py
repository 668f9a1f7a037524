"""The Remember tab in a browser: slots, their passages, and live updates."""

import re
from pathlib import Path
from typing import Any

import pytest

import streamlm
from streamlm.checkpoints.checkpoint import Checkpoint
from tests.support.demo_server import DemoServer, Visit

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

pytestmark = pytest.mark.browser

# Records what the page shows from now on: positions, strips, widths of zones, and movements.
WATCH = """() => {
    window.seen = { positions: [], strips: [], widths: [], moves: 0 };
    const add = (list, item) => { if (!list.includes(item)) list.push(item); };
    const animate = Element.prototype.animate;
    Element.prototype.animate = function (...all) {
        if (this.closest("#strip")) seen.moves += 1;
        return animate.apply(this, all);
    };
    new MutationObserver(() => {
        const figure = document.querySelector("#strip figure");
        add(seen.positions, document.querySelector("#position").innerText);
        if (!figure) return;
        add(seen.strips, JSON.parse(figure.dataset.memory).position);
        add(seen.widths, [...figure.querySelectorAll("rect.background")]
            .map((zone) => zone.getAttribute("width")).join());
    }).observe(document.body,
        { subtree: true, childList: true, characterData: true, attributes: true });
}"""


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
    visitor.page.evaluate(WATCH)
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
    seen = visitor.page.evaluate("seen")
    # The strip was redrawn with every update, its zones kept their widths, and tokens moved.
    assert len(seen["strips"]) >= 0.7 * len(seen["positions"]) > 3
    assert len(seen["widths"]) == 1 and seen["moves"] > 0
    claim = visitor.page.locator("#strip .claim").inner_text()
    assert re.search(r"[\d,]+ tokens read · memory .*, constant · keeping every token would", claim)
    page = visitor.page.locator("#read-page .page")
    assert page.evaluate("(p) => p.scrollHeight - p.clientHeight - p.scrollTop") < 24
    assert page.evaluate("(p) => p.scrollTop") > 0  # at the newest words, without being scrolled


def test_touch_read_on_touch_again(
    visit: Visit, server: DemoServer, tiny: Checkpoint, prose: Any
) -> None:
    """A touched slot shows the text that is behind it now, in whichever session."""
    visitor = visit("first")
    figure = visitor.page.locator("#strip figure.memory")

    def touched() -> str:
        """Touch a slot; its text, which is checked against the token log of the session."""
        figure.locator("svg").click(position={"x": 200, "y": 10})
        caption = figure.locator("figcaption").inner_text()
        tokens, ago = re.search(r"slot · (\w+) tokens? · ([\d,]+) tokens ago", caption).groups()
        shown = figure.locator("figcaption mark").inner_text()
        with streamlm.open(
            server.store / f"{visitor.session}.zarr", tiny, readonly=True
        ) as session:
            stop = session.position - int(ago.replace(",", "")) + 1
            expected = session.text(stop - (1 if tokens == "one" else int(tokens)), stop)
        assert shown.split() == expected.split() != [], caption
        return f"{stop} {shown}"

    def read(words: int, seed: int) -> None:
        # No token of these words is blank, wherever the touch lands; a digit's space would be one.
        known = (word for word in prose(words, seed=seed).split() if word.isascii())
        visitor.read("".join(f" {word}" for word in known if not word.isdigit()))
        drawn = "JSON.parse(document.querySelector('#strip figure').dataset.memory).position"
        visitor.page.wait_for_function(f"{drawn} === {visitor.position}")

    read(100, 1)
    first = touched()
    read(100, 2)
    # Drawn anew, the figure shows the slot that was chosen, with its present text.
    assert figure.locator("figcaption mark").count() == 1
    assert touched() != first
    visitor.page.locator("#new").click()
    visitor.wait_for("position", "has read nothing yet")
    visitor.wait_for("strip", "An example")
    read(70, 3)
    assert touched() != first
