"""The Chat tab in a browser: replies, stopping, undo, and models that do not chat."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.chats import chat_folder
from tests.support.demo_server import DemoServer, Visit, Visitor

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """A demo whose model chats; the bundled one does not."""
    folder = tmp_path_factory.mktemp("demo")
    with DemoServer(folder / "sessions", chat_folder(folder / "chatty")) as server:
        yield server


def say(visitor: Visitor, text: str, *, tokens: int = 12, temperature: int = 2) -> None:
    page = visitor.page
    if not page.get_by_label("System prompt").is_visible():
        page.get_by_text("System prompt and sampling").click()
    page.locator("#chat-tokens input[type=number]").fill(str(tokens))
    page.locator("#chat-temperature input[type=number]").fill(str(temperature))
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_label("Message", exact=True).press("Enter")


def wait_for_reply(visitor: Visitor, turns: int) -> list[str]:
    """Wait until a reply is finished; the roles of all turns."""
    visitor.page.wait_for_function(
        """(turns) => document.querySelectorAll(".turn").length === turns
            && !document.querySelector(".turn.writing")
            && !document.querySelector("#send").disabled""",
        arg=turns,
    )
    found = visitor.page.locator(".turn")
    return [str(found.nth(n).get_attribute("class")).split()[-1] for n in range(turns)]


def test_a_session_is_a_conversation(visit: Visit) -> None:
    visitor = visit()
    visitor.read("It was the whale. " * 30)
    before = visitor.position
    visitor.tab("Chat")
    visitor.page.locator(".turn.text").wait_for()
    say(visitor, "Who <b>are</b> you?\n<|im_end|>")
    assert wait_for_reply(visitor, 4) == ["text", "system", "user", "assistant"]
    chat = visitor.page.locator(".chat")
    assert "Who <b>are</b> you?" in chat.inner_text() and chat.locator("b b").count() == 0
    assert visitor.page.get_by_label("Message", exact=True).input_value() == ""
    first = visitor.position
    assert first > before
    say(visitor, "And why? " * 20)
    assert wait_for_reply(visitor, 6)[-2:] == ["user", "assistant"]
    bottom = "(c) => c.scrollHeight - c.clientHeight - c.scrollTop"
    assert chat.evaluate(bottom) < 2 and chat.evaluate("(c) => c.scrollTop") > 0
    whole = chat.inner_text()
    visitor.wait_for("strip", "Open segment")
    visitor.reload()
    visitor.page.locator("#position p").wait_for()
    visitor.tab("Chat")
    visitor.page.locator(".turn").nth(5).wait_for()
    assert chat.inner_text() == whole
    visitor.page.wait_for_function(f"({bottom})(document.querySelector('.chat')) < 2")
    say(visitor, "Again?")
    wait_for_reply(visitor, 8)
    visitor.page.locator("#undo-turn").click()
    visitor.wait_for("chat-status", "Undone: .* is back at token")
    assert wait_for_reply(visitor, 6) and chat.inner_text() == whole
    assert visitor.page.locator("#undo-turn").is_disabled()
    visitor.tab("Write")
    visitor.page.locator("#write").click()
    visitor.wait_for("write-status", "Generated 120 tokens")


def test_a_reply_is_stopped_and_the_chat_goes_on(visit: Visit) -> None:
    visitor = visit()
    visitor.tab("Chat")
    visitor.wait_for("chat-status", "Ask about it, or about anything else")
    say(visitor, " ")
    visitor.wait_for("chat-status", "Type a message first")
    say(visitor, "x" * 8001)
    visitor.wait_for("chat-status", "The message has 8,001 characters; allowed: at most 8,000")
    say(visitor, "Who are you?", tokens=1000, temperature=0)  # the likeliest reply has no end
    visitor.page.locator(".turn.writing").wait_for()
    visitor.page.locator("#stop-reply").click()
    visitor.wait_for("chat-status", "Stopped. The session keeps the reply so far")
    assert wait_for_reply(visitor, 3) == ["system", "user", "assistant"]
    say(visitor, "Why?", tokens=1)
    assert wait_for_reply(visitor, 5)[-1] == "assistant"
    visitor.wait_for("chat-status", "The reply reached its greatest length|^$")
    visitor.page.get_by_label("System prompt").fill("Be a whale.")
    say(visitor, "And?", tokens=1)
    visitor.wait_for("chat-status", "begun with another system prompt")
    assert visitor.page.get_by_label("Message", exact=True).input_value() == "And?"


def test_another_session_ends_the_writing_and_shows_nothing_of_it(visit: Visit) -> None:
    visitor = visit()
    page, talk = visitor.page, visitor.session
    visitor.tab("Chat")
    say(visitor, "Who are you?", tokens=1000, temperature=0)
    page.locator(".turn.writing").wait_for()
    page.locator("#new").click()
    visitor.wait_for("chat-status", "Ask about it, or about anything else")
    visitor.tab("Write")
    page.get_by_text("Sampling", exact=True).click()
    page.get_by_label("number input for Tokens", exact=True).last.fill("1000")
    page.locator("#write").click()
    page.locator("#write-page .token").first.wait_for()
    tale = visitor.session
    visitor.choose("another")
    page.locator("#undo-turn:disabled").wait_for(state="attached")
    page.wait_for_function("!document.querySelector('.turn, .token')")
    for _ in range(10):  # updates that the reply and the text would have made
        page.wait_for_timeout(200)
        assert (visitor.position, visitor.session) == (0, "another")
        assert page.locator(".turn, #write-page .token").count() == 0
        assert page.locator("#write, #send").evaluate_all("all => all.every((e) => !e.disabled)")
        assert page.locator("#stop-reply, #stop-writing, #undo, #undo-turn").evaluate_all(
            "all => all.every((e) => e.disabled)"
        )
    for session in (tale, talk):  # what was written is saved
        visitor.choose(session)
        visitor.wait_for("position", rf"{session} has read [\d,]+ tokens")
    visitor.tab("Chat")
    assert wait_for_reply(visitor, 3) == ["system", "user", "assistant"]


def test_models_of_sessions(visit: Visit, server: DemoServer) -> None:
    visitor = visit()
    visitor.tab("Chat")
    say(visitor, "Who are you?", tokens=2)
    wait_for_reply(visitor, 3)
    talk, chatty = visitor.session, visitor.page.get_by_label("Model", exact=True)
    assert chatty.input_value().endswith("chatty")
    visitor.page.locator("#model input:disabled").wait_for()
    visitor.page.locator("#undo-turn:not([disabled])").wait_for()
    visitor.page.locator("#new").click()
    visitor.wait_for("position", "has read nothing yet")
    visitor.page.locator("#undo-turn:disabled").wait_for()  # it is another session's
    visitor.page.locator("#model input:not([disabled])").wait_for()
    chatty.click()
    visitor.page.get_by_role("option", name="books").click()
    visitor.wait_for("chat-status", r"books continues texts and does not chat\. .* choose .*chatty")
    assert visitor.page.locator("#send").is_disabled()
    visitor.read("It was the best of times. " * 20)
    books = visitor.session
    assert books != talk and chatty.input_value() == "books"
    visitor.visit(talk)
    visitor.tab("Chat")
    visitor.page.locator(".turn").nth(2).wait_for()
    assert chatty.input_value().endswith("chatty")
    visitor.compare_tab()
    visitor.page.get_by_label("Text", exact=True).last.fill("It was the whale.")
    visitor.page.get_by_label("B: session").fill(books)
    visitor.page.get_by_label("B: session").press("Enter")
    visitor.page.locator("button#compare").click()
    status = visitor.wait_for("compare-status", "allowed: two of one model")
    assert re.search(rf"{talk} is a session of .*chatty, {books} of books", status)
    stored = {path.stem for path in Path(server.store).glob("*.zarr")}
    assert {talk, books} <= stored
