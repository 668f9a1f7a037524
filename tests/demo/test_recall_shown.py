"""Recall in a browser: the Chat, Write and Remember tabs show passages, and whose they are."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.chats import chat_folder
from tests.support.demo_server import DemoServer, Visit
from tests.support.recalls import COMMON, FACT, QUESTION, session_with_fact

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """A demo with the session "log", of a model that chats."""
    folder: Path = tmp_path_factory.mktemp("demo")
    model = chat_folder(folder / "chatty")
    session_with_fact(folder / "sessions" / "log.zarr", model)
    with DemoServer(folder / "sessions", model) as server:
        yield server


def test_a_chat_shows_what_was_recalled(visit: Visit) -> None:
    visitor, other = visit("log"), visit("log")
    page = visitor.page
    visitor.tab("Chat")
    page.locator(".turn.text").wait_for()
    assert page.locator("#chat-recall input:checked").input_value() == "1"
    page.get_by_text("System prompt and sampling").click()
    page.locator("#chat-tokens input[type=number]").fill("3")
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.locator("#send").click()
    assert FACT in visitor.wait_for("chat-recalled", r"token [\d,]+ of [\d,]+ · saved .* · score")
    panel = page.locator("#chat-recalled")
    assert "Zebulon Quayle" in panel.locator("mark").all_inner_texts()
    assert panel.locator("svg rect").count() == 2 and panel.locator("b b").count() == 0
    turn = page.locator(".turn.user")
    turn.locator("details").wait_for()
    assert turn.locator("p").inner_text() == QUESTION and FACT not in turn.inner_text()
    turn.locator("summary").click()
    assert FACT in turn.inner_text()
    page.locator("#send:enabled").wait_for()
    page.get_by_label("Message", exact=True).fill(COMMON)
    page.locator("#send").click()
    visitor.wait_for("chat-recalled", "Recalled: none")
    page.locator("#send:enabled").wait_for()
    other.tab("Chat")  # a page that was open before
    other.page.locator(".turn.user").nth(1).wait_for()
    assert other.page.locator(".turn.user details").count() == 1
    assert other.page.locator("#chat-recalled").inner_text().strip() == ""
    page.locator("#undo-turn").click()
    visitor.wait_for("chat-status", "Undone: log is back at token")
    assert page.locator(".turn.user p").all_inner_texts() == [QUESTION]


def test_a_question_about_what_was_read(visit: Visit) -> None:
    visitor = visit("log")
    visitor.tab("Remember")
    asked = visitor.page.locator("#asked").locator("textarea, input")
    visitor.page.locator("#find").click()
    visitor.wait_for("found", "Type a question first")
    asked.fill(QUESTION)
    asked.press("Enter")
    assert FACT in visitor.wait_for("found", "has no retrieval heads")
    assert visitor.page.locator("#found .recall").count() == 3
    visitor.page.locator("#new").click()
    visitor.wait_for("position", "has read nothing yet")
    visitor.page.locator("#found .recall").first.wait_for(state="detached")
    visitor.page.locator("#find").click()
    visitor.wait_for("found", "has read nothing yet")


def test_writing_shows_what_was_recalled(visit: Visit) -> None:
    visitor = visit("log")
    page = visitor.page
    visitor.tab("Write")
    assert page.locator("#write-recall input:checked").input_value() == "0"
    page.locator("#write-recall").get_by_text("2", exact=True).click()
    page.locator("#write").click()
    visitor.wait_for("write-status", "Recall needs a prompt")
    page.get_by_label("Prompt", exact=True).fill(QUESTION)
    page.locator("#write").click()
    visitor.wait_for("write-status", "Generated 120 tokens")
    assert FACT in visitor.wait_for("write-recalled", "Recalled from what was read")
    assert page.locator("#write-page b").inner_text() == QUESTION
    page.locator("#undo").click()
    visitor.wait_for("write-status", "Undone: log is back at token")
    assert page.locator("#write-recalled").inner_text().strip() == ""
