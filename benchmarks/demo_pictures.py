"""The pictures of the demo in docs/demo.md.

    python -m benchmarks.demo_pictures        # needs a chromium; reads the bundled book first

A demo of its own reads the bundled book with the bundled model, and a browser visits its pages.
The chat is shown if a model that chats has been downloaded.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.demo import FLAGS
from streamlm.checkpoints.catalogue import chat_models, present

READ = 300_000  # milliseconds that the book may take
SESSION = "beyond-the-city"
PROMPT = '"My dear Ida," said the Doctor,'
TALE = (
    "Captain Harlow sailed from Bristol in 1821 with a cargo of tea. The ship was called the Grey "
    "Heron. The cook was a Norwegian, and his cat, Bertha, was white as snow and slept in the "
    "captain's hat. "
)
ASKED = (
    "What was the ship called?",
    "When did she sail, and from where?",
    "Where did the cat sleep?",
)


@contextmanager
def demo(store: Path, model: str) -> Iterator[str]:
    """A demo in a process of its own; gives its address."""
    command = [sys.executable, "-u", "-m", "streamlm", "demo", "--store", str(store)]
    command += ["--model", model, "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert server.stderr is not None
        lines = (re.search(r"the demo is at (http://\S+)", line) for line in server.stderr)
        yield next(found[1] for found in lines if found)
    finally:
        server.terminate()
        server.wait()


class Camera:
    """Takes pictures of pages, each with its own width and colours."""

    def __init__(self, browser: Any, folder: Path) -> None:
        self._browser, self._folder = browser, folder

    def open(
        self, address: str, session: str = SESSION, *, width: int = 1000, scheme: str = "light"
    ) -> Any:
        """A page of a session, after its memory is drawn."""
        page = self._browser.new_context(color_scheme=scheme).new_page()
        page.set_viewport_size({"width": width, "height": 800})
        page.set_default_timeout(READ)
        page.goto(f"{address}?session={session}")
        page.locator("#position p").wait_for()
        return page

    def take(self, page: Any, name: str, *, height: int | None = None) -> None:
        """Take a picture of the whole page, or of so many pixels of its height."""
        page.mouse.move(0, 0)
        page.wait_for_timeout(600)  # movements have ended
        clip = {"x": 0, "y": 0, "width": page.viewport_size["width"], "height": height or 0}
        page.screenshot(
            path=self._folder / f"{name}.png", full_page=True, clip=clip if height else None
        )
        print(self._folder / f"{name}.png")


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def books(camera: Camera, address: str) -> None:
    """The pictures of the bundled model's session."""
    page = camera.open(address)
    camera.take(page, "first")
    page.locator("#read").click()
    page.locator("#read-status", has_text="Read ").wait_for()
    page.locator("#strip .cells.compressed").wait_for()
    page.wait_for_timeout(3000)
    box = page.locator("#strip svg").last.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.2, box["y"] + 20)
    camera.take(page, "read")
    tab(page, "Write")
    drawn = "JSON.parse(document.querySelector('#strip figure').dataset.memory).position"
    position = page.evaluate(drawn)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_text("Sampling", exact=True).click()
    page.get_by_label("Seed", exact=True).fill("1")
    page.get_by_text("Sampling", exact=True).click()
    page.locator("#write").click()
    page.locator("#write-status", has_text="Generated").wait_for()
    page.locator("#write-page").scroll_into_view_if_needed()
    page.wait_for_function(f"{drawn} > {position}")
    page.locator("#write-page .token").nth(12).click()
    camera.take(page, "write")
    page.locator("#odds button").nth(1).click()
    page.locator("#write-status", has_text="What was there before").wait_for()
    tab(page, "Compare")
    page.locator("#compare-example").click()
    page.locator("#compare-status", has_text="bits per byte").wait_for()
    camera.take(page, "compare")
    dark = camera.open(address, scheme="dark")
    tab(dark, "Remember")
    dark.locator("#curve svg").wait_for()
    box = dark.locator("#memory svg").bounding_box()
    dark.mouse.click(box["x"] + box["width"] * 0.1, box["y"] + 50)
    camera.take(dark, "remember-dark")
    tab(dark, "Sessions")
    dark.locator("#shelf tr").nth(1).wait_for()
    camera.take(dark, "sessions-dark")
    phone = camera.open(address, width=375)
    phone.locator("#strip .cells.compressed").wait_for()
    camera.take(phone, "phone")


def chat(camera: Camera, address: str) -> None:
    """A chat with a model that has read a short tale."""
    page = camera.open(address, "grey-heron")
    page.get_by_label("Pasted text").check()
    page.get_by_label("Text", exact=True).fill(TALE)
    page.locator("#read").click()
    page.locator("#read-status", has_text="Read ").wait_for()
    tab(page, "Chat")
    page.get_by_text("System prompt and sampling").click()
    page.locator("#chat-temperature input[type=number]").fill("0")
    page.get_by_text("System prompt and sampling").click()
    for n, question in enumerate(ASKED, 1):
        page.get_by_label("Message", exact=True).fill(question)
        page.get_by_label("Message", exact=True).press("Enter")
        page.locator(".turn.assistant:not(.writing)").nth(n - 1).wait_for()
        page.locator("#send:not([disabled])").wait_for()
    page.wait_for_timeout(4000)  # the memory is drawn
    camera.take(page, "chat")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("apps/pictures"))
    parser.add_argument("--only", choices=("books", "chat"), help="one of the two models")
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chatty = [name for name in present() if name in chat_models()]
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        camera = Camera(browser, args.out)
        if args.only != "chat":
            with demo(Path(folder) / "books", "books") as address:
                books(camera, address)
        if chatty and args.only != "books":
            with demo(Path(folder) / "chats", chatty[0]) as address:
                chat(camera, address)
        browser.close()


if __name__ == "__main__":
    main()
