"""The Write tab in a browser: alternatives, undo, stop strings, and two forks."""

import re
from typing import Any

import pytest

import streamlm
from streamlm.checkpoints.checkpoint import Checkpoint
from tests.support.demo_server import DemoServer, Visit

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

pytestmark = pytest.mark.browser


def test_generation_shows_alternatives_and_is_undone(visit: Visit, prose: Any) -> None:
    visitor = visit()
    visitor.read(prose(40))
    before = visitor.position
    visitor.tab("Write")
    visitor.page.get_by_label("Prompt", exact=True).fill("And <b>then</b>")
    visitor.page.locator("#write").click()
    visitor.wait_for("write-status", "Generated 120 tokens")
    page = visitor.page.locator("#write-page .page")
    assert "And <b>then</b>" in page.inner_text() and page.locator("b b").count() == 0
    assert page.locator(".token").count() == 120
    page.locator(".token").nth(3).hover()
    odds = visitor.page.locator("#odds")
    assert len(re.findall(r"[\d.]+%", odds.inner_text())) >= 8
    page.focus()
    visitor.page.keyboard.press("ArrowRight")
    assert odds.locator("tr.taken").count() >= 1
    visitor.page.keyboard.press("Escape")
    assert not odds.is_visible()
    assert visitor.position > before + 120
    visitor.page.locator("#undo").click()
    visitor.wait_for("write-status", "Undone: .* is back at token")
    assert visitor.position == before
    assert visitor.page.locator("#write-page .token").count() == 0
    assert visitor.page.locator("#undo").is_disabled()


def test_an_alternative_goes_on_from_there(
    visit: Visit, server: DemoServer, tiny: Checkpoint, prose: Any
) -> None:
    visitor = visit("tale")
    visitor.read(prose(40))
    visitor.tab("Write")
    page = visitor.page
    page.locator("#write").click()
    visitor.wait_for("write-status", "Generated 120 tokens. Touch one")
    before = page.locator("#write-page .token").all_text_contents()
    end = visitor.position
    token = page.locator("#write-page .token").nth(5)
    token.click()
    choice = page.locator("#odds button").first
    taken = choice.inner_text()
    choice.click()
    status = visitor.wait_for("write-status", "What was there before is the branch")
    assert "branch tale@other-1" in status
    after = page.locator("#write-page .token").all_text_contents()
    shown = [text.replace("\n", "⏎").strip() or "␣" for text in after]
    assert after[:5] == before[:5] and after[5] != before[5] and len(after) == 120
    assert taken in (shown[5], f"␣{shown[5]}", "␣", "·")
    for branch, tokens in (("main", after), ("other-1", before)):
        with streamlm.open(
            server.store / "tale.zarr", tiny, branch=branch, readonly=True
        ) as session:
            assert session.position == end and session.text().endswith("".join(tokens))
    # Another session shows nothing of it, and has nothing to undo.
    page.locator("#new").click()
    page.wait_for_function("!document.querySelector('#write-page .token')")
    page.locator("#undo:disabled").wait_for()
    assert page.locator("#write-status").inner_text().strip() == ""


def test_generation_stops_before_a_stop_string(visit: Visit, prose: Any) -> None:
    visitor = visit()
    visitor.read(prose(40))
    visitor.tab("Write")
    page = visitor.page
    page.get_by_text("Sampling", exact=True).click()
    page.get_by_label("Temperature (0: greedy)").first.fill("0")
    page.locator("#write").click()
    visitor.wait_for("write-status", "Generated 120 tokens")
    tokens = page.locator("#write-page .token")
    whole = "".join(tokens.all_text_contents())
    stop = whole[60:64]
    page.locator("#undo").click()
    visitor.wait_for("write-status", "Undone: .* is back at token")
    page.get_by_label("Stop strings").fill(
        "never generated\n" + stop.replace("\\", r"\\").replace("\n", r"\n")
    )
    page.locator("#write").click()
    visitor.wait_for("write-status", r"Generated \d+ tokens, up to a stop string")
    assert "".join(tokens.all_text_contents()) == whole[: whole.find(stop)]


def test_two_forks_side_by_side(visit: Visit, prose: Any) -> None:
    visitor = visit()
    visitor.read(prose(80))
    before = visitor.position
    visitor.tab("Write")
    visitor.page.get_by_text("Side by side:").click()
    visitor.page.get_by_label("B: seed").fill("1")
    for token, alike in (("", True), ("20", False)):
        visitor.page.get_by_label("B: fork at token").fill(token)
        visitor.page.locator("#write-both").click()
        visitor.page.wait_for_function(
            """(alike) => {
                const [a, b] = [..."ab"].map((side) => document.querySelector(`#side-${side}`));
                const whole = [a, b].every((side) => side.querySelectorAll(".token").length === 60);
                return whole && (a.innerText === b.innerText) === alike;
            }""",
            arg=alike,
        )
        assert "And then" in visitor.page.locator("#side-a .page").inner_text()
    visitor.wait_for("both-status", "The session itself is unchanged")
    visitor.page.get_by_label("B: fork at token").fill("soon")
    visitor.page.locator("#write-both").click()
    visitor.wait_for("both-status", "Token 'soon'; allowed: a whole number, or nothing")
    visitor.reload()
    visitor.wait_for("position", f"has read {before} tokens")
