"""The Sessions tab in a browser: every operation on a session."""

from pathlib import Path
from typing import Any

import pytest

import streamlm
from streamlm.checkpoints.checkpoint import Checkpoint
from tests.support.demo_server import DemoServer, Visit

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

pytestmark = pytest.mark.browser


def test_the_life_of_a_session(
    visit: Visit, server: DemoServer, tiny: Checkpoint, prose: Any, tmp_path: Path
) -> None:
    visitor = visit("whale")
    visitor.read(prose(120))
    end, page = visitor.position, visitor.page
    visitor.tab("Sessions")
    assert "whale" in visitor.wait_for("shelf", "whale")
    page.wait_for_function(  # until the tab is drawn, there is no token to choose
        "end => document.querySelector('#point input[type=range]').max === String(end)", arg=end
    )
    page.locator("#point input[type=number]").fill("30")
    page.locator("#point input[type=number]").press("Enter")
    page.get_by_label("Name of the fork").fill("draft")
    page.locator("#fork").click()
    visitor.wait_for("point-status", "whale@draft starts at token 30")
    visitor.wait_for("position", "whale@draft has read 30 tokens")
    page.locator("#point input[type=number]").fill("10")
    page.locator("#point input[type=number]").press("Enter")
    page.locator("#rewind").click()
    visitor.wait_for("point-status", "whale@draft is back at token 10")
    # Rows and the bar of the session can be touched, and its branch is drawn.
    assert page.locator("#shelf .drawn svg path").count() >= 2
    page.locator("#shelf tr", has_text="@draft").locator("td").nth(2).click()
    visitor.wait_for("position", "whale@draft has read 10 tokens")
    page.locator("#shelf").get_by_role("button", name="whale", exact=True).click()
    visitor.wait_for("position", f"whale has read {end} tokens")
    page.locator("#timeline tbody tr").last.click()
    number = "document.querySelector('#point input[type=number]').value"
    page.wait_for_function(f"{number} === '0'")
    box = page.locator("#timeline .bar svg").bounding_box()
    page.locator("#timeline .bar svg").click(position={"x": box["width"] / 2, "y": 5})
    page.wait_for_function(f"Math.abs({number} - {end / 2}) < 3")
    page.locator("#shelf tr", has_text="@draft").click()
    visitor.wait_for("position", "whale@draft has read 10 tokens")
    page.get_by_text("Rename, export").click()
    page.get_by_label("New name").fill("../../moby")
    page.locator("#rename").click()
    visitor.wait_for("rename-status", "allowed: NAME or NAME@BRANCH")
    page.get_by_label("New name").fill("moby")
    page.locator("#rename").click()
    visitor.wait_for("rename-status", "is now moby@draft")
    with streamlm.open(server.store / "moby.zarr", tiny, branch="draft") as session:
        assert session.position == 10  # the store that the command line uses
        session.feed([prose(30)])
        grown = session.position
    page.locator("#export").click()
    visitor.wait_for("export-status", "every token, and fewer snapshots the older they are")
    with page.expect_download() as download:
        page.locator("a[download]").first.click()
    file = tmp_path / "moby.zip"
    download.value.save_as(file)
    page.locator("input[type=file]").last.set_input_files(file)
    page.get_by_label("Name of the import").fill("copy")
    page.locator("#import").click()
    visitor.wait_for("import-status", "Imported copy")
    visitor.wait_for("position", f"copy has read {end} tokens")
    page.locator("#delete").click()
    page.locator("#delete-no").click()
    assert (server.store / "copy.zarr").exists()
    page.locator("#delete").click()
    page.locator("#delete-yes").click()
    visitor.wait_for("delete-status", "Deleted copy")
    assert not (server.store / "copy.zarr").exists()
    visit("moby@draft").wait_for("position", f"moby@draft has read {grown} tokens")
    with streamlm.open(server.store / "moby.zarr", tiny, readonly=True) as session:
        assert session.position == end
