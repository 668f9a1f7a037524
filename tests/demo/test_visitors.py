"""Several visitors at once, in browsers: fair turns, and separate shelves."""

import re
import time
from pathlib import Path
from typing import Any

import pytest

import streamlm
from streamlm.checkpoints.checkpoint import Checkpoint
from tests.support.demo_server import DemoServer, Visit, Visitor

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

pytestmark = pytest.mark.browser


def test_a_slow_network(
    visit: Visit, server: DemoServer, tiny: Checkpoint, prose: Any, tmp_path: Path
) -> None:
    """With 400 ms latency and 50 kB/s the page lags, but it is correct and blocks nobody."""
    slow, text = visit(), prose(8000)
    devtools = slow.page.context.new_cdp_session(slow.page)
    devtools.send("Network.enable")
    limits = {"latency": 400, "downloadThroughput": 50_000, "uploadThroughput": 50_000}
    devtools.send("Network.emulateNetworkConditions", {"offline": False, **limits})
    other = visit()
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    slow.read_file(file)
    slow.wait_for("read-bar", "tokens/s")
    other.read(prose(30))
    summary = slow.wait_for("read-status", r"Read [\d,]+ tokens")
    name, position = slow.session, slow.position
    assert f"is saved at token {position:,}" in summary
    shown = slow.page.locator("#read-page .page span[title]").all_text_contents()
    with streamlm.open(server.store / f"{name}.zarr", tiny, readonly=True) as session:
        assert session.position == position and session.text() + session.tail == text
        assert session.text().endswith("".join(shown)) and len(shown) == 400
    slow.tab("Write")
    slow.page.locator("#write").click()
    slow.wait_for("write-status", "Generated 120 tokens")
    generated = slow.page.locator("#write-page .token").all_text_contents()
    with streamlm.open(server.store / f"{name}.zarr", tiny, readonly=True) as session:
        assert session.position == slow.position and len(generated) == 120
        assert session.text() == text + "".join(generated)


def test_two_visitors_at_once(visit: Visit, long: Path, prose: Any) -> None:
    one, two = visit(), visit()
    assert one.session != two.session
    one.read_file(long)
    one.wait_for("read-bar", "tokens/s")
    two.read(prose(60))  # gets its turn while the first is still reading
    assert one.page.locator("#read").is_disabled()
    third = visit(one.session)
    third.read("Me too.", until="is in use: another page or the command line is")
    third.visit(two.session).read("A word more. ")
    one.page.locator("#stop-reading").click()
    one.wait_for("read-status", "Stopped")
    third.visit(one.session).read("Now me. ")


def test_a_closed_tab_frees_its_session(visit: Visit, long: Path) -> None:
    one, two = visit(), visit()
    one.read_file(long)
    one.wait_for("read-bar", "tokens/s")
    name = one.session
    one.close()
    two.visit(name)
    for _ in range(20):
        if "in use" not in two.read("And me. ", until="in use|Read"):
            return
        time.sleep(0.5)
    raise AssertionError("still in use")


def test_each_browser_has_its_own_sessions(
    chromium: Any, model: Path, tmp_path: Path, prose: Any
) -> None:
    store = tmp_path / "sessions"
    with DemoServer(store, model, "--private") as server:
        one = Visitor(chromium, server).visit("diary")
        one.read(prose(40))
        other = chromium.browser.new_context()
        two = Visitor(other, server).visit("diary")
        assert two.position == 0
        two.tab("Sessions")
        two.wait_for("shelf", "There are no sessions yet")
        again = Visitor(chromium, server).visit("diary")
        assert again.position == one.position > 0
        other.close()
        one.close()
        again.close()
    assert len(list((store / "browsers").iterdir())) == 1


def test_each_user_has_their_own_sessions(
    chromium: Any, model: Path, tiny: Checkpoint, tmp_path: Path, prose: Any
) -> None:
    store = tmp_path / "sessions"
    with DemoServer(store, model, "--auth", "ada:one", "--auth", "bob:two") as server:
        for name, password in (("ada", "two"), ("ada", "one"), ("bob", "two")):
            context = chromium.browser.new_context()
            visitor = Visitor(context, server)
            visitor.page.goto(server.address)
            assert visitor.page.locator("#read").count() == 0
            visitor.page.get_by_label("username").fill(name)
            visitor.page.get_by_label("password").fill(password)
            visitor.page.get_by_role("button", name="Login").click()
            if (name, password) == ("ada", "two"):
                visitor.page.get_by_text(re.compile("incorrect", re.IGNORECASE)).first.wait_for()
            else:
                visitor.page.locator("#position p").wait_for()
                visitor.visit("diary")
                assert visitor.position == 0
                visitor.read(prose(30))
            assert visitor.outside == []
            context.close()
    for name in ("ada", "bob"):
        with streamlm.open(store / "users" / name / "diary.zarr", tiny, create=False) as session:
            assert session.position > 30
