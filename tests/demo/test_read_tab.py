"""The Read tab in a browser: pasted texts, files, stopping and resuming."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.archives import bomb
from tests.support.demo_server import Visit

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

pytestmark = pytest.mark.browser


def test_reading_shows_surprise_and_escapes_markup(visit: Visit, prose: Any) -> None:
    visitor = visit()
    page = visitor.page
    # The first screen: the bundled book, a button that says what it does, an example with a legend.
    assert page.get_by_label("The bundled book").is_checked()
    assert page.locator("#read").inner_text() == "Read the bundled book"
    assert "An example" in page.locator("#strip").inner_text()
    assert page.locator("#strip .legend span").count() == 3
    page.get_by_label("A file", exact=True).check()
    page.locator("#read", has_text="Read the file").wait_for()
    text = "<img src=x onerror=alert(1)> {{this}} ${value} <script>alert(2)</script> &amp; "
    summary = visitor.read(prose(60) + text)
    assert re.search(r"Read \d+ tokens at \d+\.\d\d bits per byte; .* is saved at token", summary)
    shown = visitor.page.locator("#read-page .page")
    assert "<img src=x onerror=alert(1)> {{this}} ${value} <script>" in shown.inner_text()
    assert shown.locator("img, script").count() == 0
    marks = shown.locator("span[title$=bits]")
    assert marks.count() > 60 and "--s:" in marks.first.get_attribute("style")
    assert "surprising" in page.locator("#read-page .legend").inner_text()
    assert page.locator("#read").inner_text() == "Read the text"
    assert "100%" in visitor.page.locator("#read-bar").inner_text()
    assert visitor.position > 60
    assert visitor.page.locator("#strip .cells path").count() == 3


def test_reading_stops_and_resumes(visit: Visit, long: Path) -> None:
    visitor = visit()
    visitor.read_file(long)
    visitor.wait_for("read-bar", r"tokens/s · .* left · \d+\.\d\d bits per byte")
    visitor.page.locator("#stop-reading").click()
    visitor.wait_for("read-status", "Stopped. Everything read so far is saved")
    stopped = visitor.position
    assert 0 < stopped < 400_000
    visitor.page.locator("#read").click()
    visitor.wait_for("read-bar", "tokens/s")
    visitor.reload()  # while reading: the job is cancelled, and what it has read stays
    visitor.wait_for("position", "has read [0-9,]+ tokens")
    assert visitor.position >= stopped
    visitor.wait_for("read-status", "Its reading was interrupted")
    resume = visitor.page.locator("#resume-reading")
    assert resume.inner_text() == "Go on reading long.txt"
    resume.click()  # the abandoned page's job has ended
    assert re.search(r"resumed at byte [\d,]+", visitor.wait_for("read-bar", "tokens/s"))
    visitor.page.locator("#stop-reading").click()
    visitor.wait_for("read-status", "Stopped")
    again = visit(visitor.session)
    again.read_file(long)  # or it is chosen again
    assert re.search(r"resumed at byte [\d,]+", again.wait_for("read-bar", "tokens/s"))
    again.page.locator("#new").click()  # another session shows nothing of it
    again.page.wait_for_function("!document.querySelector('#read-page .page')")


def test_another_session_ends_the_reading_and_shows_nothing_of_it(visit: Visit, long: Path) -> None:
    visitor = visit()
    page, first = visitor.page, visitor.session
    visitor.read_file(long)
    visitor.wait_for("read-bar", "tokens/s")
    page.locator("#new").click()
    visitor.wait_for("position", "has read nothing yet")
    second = visitor.session
    assert second != first
    page.wait_for_function("!document.querySelector('#read-bar').innerText.trim()")
    for _ in range(10):  # updates that the reading would have made
        page.wait_for_timeout(200)
        assert visitor.position == 0 and visitor.session == second
        shown = page.locator("#read-bar, #read-page, #read-status").all_inner_texts()
        assert not "".join(shown).strip()
        assert page.locator("#read").is_enabled() and page.locator("#stop-reading").is_disabled()
    assert re.search(r"Read \d+ tokens", visitor.read("The sea, the sea. "))
    visitor.choose(first)
    visitor.wait_for("read-status", "Its reading was interrupted")
    assert visitor.position > 0  # all of it was saved
    page.locator("#resume-reading").click()
    assert re.search(r"resumed at byte [\d,]+", visitor.wait_for("read-bar", "tokens/s"))
    page.locator("#stop-reading").click()
    visitor.wait_for("read-status", "Stopped")


def test_hostile_files_are_refused(visit: Visit) -> None:
    visitor = visit()
    visitor.page.get_by_label("A file", exact=True).check()
    for name, data, message in (
        ("<img src=x onerror=alert(1)>.txt", b"\x00\x01binary", "looks binary"),
        ("half.txt", "é".encode()[:1] + b" x", "is not UTF-8 text: invalid continuation byte"),
        ("bomb.epub", bomb(), "decompresses to more than 40 MB"),
        ("broken.pdf", b"%PDF-1.7", "is not a valid PDF"),
    ):
        upload = {"name": name, "mimeType": "text/plain", "buffer": data}
        visitor.page.locator("#file input[type=file]").set_input_files(upload)
        visitor.page.locator("#file .file-preview").first.wait_for()
        visitor.page.locator("#read").click()
        visitor.wait_for("read-status", message)
        assert visitor.page.locator("#read-status img, #file img[onerror]").count() == 0
        assert visitor.position == 0 and visitor.page.locator("#read").is_enabled()
        visitor.page.get_by_label("Clear").first.click()


def test_large_and_unsupported_files_are_refused(visit: Visit, tmp_path: Path) -> None:
    visitor = visit()
    visitor.page.get_by_label("A file", exact=True).check()
    (tmp_path / "large.txt").write_bytes(b"a" * 11_000_000)
    visitor.read_file(tmp_path / "large.txt")
    visitor.wait_for("read-status", r"large\.txt has 11\.0 MB; allowed: at most 10 MB")
    visitor.page.get_by_label("Clear").first.click()
    (tmp_path / "run.exe").write_bytes(b"MZ")
    visitor.page.locator("#file input[type=file]").set_input_files(tmp_path / "run.exe")
    visitor.page.get_by_text(re.compile("Invalid file type")).first.wait_for()
    visitor.read("Still here. ")
    visitor.errors.clear()  # Gradio reports refused files on the console
