"""Shared by the demo's tests: a server in its own process, and a browser."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BOOK = (ROOT / "streamlm/assets/books/beyond-the-city.txt").read_text(encoding="utf-8")
LONG = BOOK * 10  # takes the tiny model some time
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# The browser makes no requests of its own accord.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
CUT_OFF = ("AbortError: signal is aborted", "Connection errored out")
TIMEOUT = 60_000  # milliseconds, for a busy machine


class DemoServer:
    """`streamlm demo` in its own process.

    Args:
        early: return as soon as it listens, without waiting for the demo itself.
    """

    def __init__(
        self, store: Path, model: Path, *options: str, port: int = 0, early: bool = False
    ) -> None:
        command = [sys.executable, "-u", "-m", "streamlm", "demo", "--store", str(store)]
        command += ["--model", str(model), "--device", "cpu", "--port", str(port), *options]
        self.store = store
        self._log = open(store.parent / f"{store.name}.log", "a+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            cwd=store.parent,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=self._log,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        self._lines: list[str] = []
        where = "starting at" if early else "the demo is at"
        for line in self._process.stderr:
            self._lines.append(line)
            if found := re.search(rf"{where} (http://\S+?:(\d+)/)", line):
                self.address, self.port = found[1], int(found[2])
                threading.Thread(target=self._follow, daemon=True).start()
                return
        raise AssertionError("".join(self._lines))

    def _follow(self) -> None:
        """Take what it says on standard error, so that the pipe does not fill."""
        assert self._process.stderr is not None
        with suppress(ValueError):  # closed
            for line in self._process.stderr:
                self._lines.append(line)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self._process.send_signal(number)
        status = self._process.wait(timeout=60)
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._log.close()
        return status

    @property
    def errors(self) -> str:
        """Its standard error so far."""
        return "".join(self._lines)

    @property
    def log(self) -> str:
        """Its standard output so far."""
        return Path(self._log.name).read_text(encoding="utf-8")

    def __enter__(self) -> "DemoServer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.end()


@contextmanager
def browser() -> Iterator[Any]:
    """A browser context of a headless Chromium; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs a chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium.new_context(accept_downloads=True)
        chromium.close()


READ = r"Read [\d,]+ tokens"  # the status of a text that was read


class Visitor:
    """A page of the demo, its errors, and its requests to other hosts.

    Args:
        address: the URL of the proxy in front of the server, if there is one.

    Attributes:
        outside: requested URLs that are not the server's.
        errors: uncaught script errors, and error messages on the console.
    """

    def __init__(
        self,
        context: Any,
        server: DemoServer,
        *,
        address: str = "",
        width: int = 1000,
        scheme: str = "light",
    ) -> None:
        self.server, self.address = server, address or server.address
        self.page = context.new_page()
        self.page.set_viewport_size({"width": width, "height": 800})
        self.page.emulate_media(color_scheme=scheme)
        self.page.set_default_timeout(TIMEOUT)
        self.outside: list[str] = []
        self.errors: list[str] = []
        self._has_left = False
        self.page.on("request", self._requested)
        self.page.on("pageerror", lambda error: self._failed(str(error)))
        self.page.on(
            "console",
            lambda entry: (
                self._failed(f"{entry.text} {entry.location['url']}")
                if entry.type == "error"
                else None
            ),
        )

    def _requested(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.outside.append(request.url)

    def _failed(self, error: str) -> None:
        # Leaving a page aborts its streams, which Gradio's client reports.
        if not (self._has_left and any(cut in error for cut in CUT_OFF)):
            self.errors.append(error)

    def visit(self, session: str = "") -> "Visitor":
        self._has_left |= self.page.url != "about:blank"
        self.page.goto(self.address + (f"?session={session}" if session else ""))
        self.page.locator("#position p").wait_for()
        return self

    @property
    def session(self) -> str:
        """The session named in the address."""
        return str(self.page.url).partition("session=")[2]

    def choose(self, session: str) -> None:
        """Choose a session above the tabs."""
        names = self.page.get_by_role("combobox", name="Session")
        names.fill(session)
        names.press("Enter")
        self.page.wait_for_url(f"**session={session}")

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def compare_tab(self) -> None:
        """Open the Compare tab; shortly after, both sides default to this session."""
        self.tab("Compare")
        for side in "ab":
            self.page.wait_for_function(
                "([side, name]) => document.querySelector(`#compare-${side} input`).value === name",
                arg=[side, self.session],
            )

    def wait_for(self, id: str, pattern: str) -> str:
        """Wait until an element's text matches, and return the text."""
        from playwright.sync_api import TimeoutError as TookTooLong

        part = self.page.locator(f"#{id}", has_text=re.compile(pattern))
        try:
            part.wait_for()
        except TookTooLong:
            texts = self.page.locator(f"#{id}").all_inner_texts()
            logs = f"errors of the page: {self.errors}; log of the server:\n{self.server.log}"
            raise AssertionError(f"no {pattern!r} in #{id}, which says {texts}; {logs}") from None
        return str(part.inner_text())

    def read(self, text: str, *, until: str = READ) -> str:
        self.tab("Read")
        self.page.get_by_label("Pasted text").check()
        self.page.get_by_label("Text", exact=True).fill(text)
        before = self.page.locator("#read-status").inner_text()
        self.page.locator("#read").click()
        if until == READ:  # which an earlier text has left there, with another position
            said = "document.querySelector('#read-status').innerText"
            self.page.wait_for_function(f"before => {said}.trim() !== before", arg=before.strip())
        return self.wait_for("read-status", until)

    def read_file(self, path: Path) -> None:
        """Start reading a file."""
        self.tab("Read")
        self.page.get_by_label("A file", exact=True).check()
        self.page.locator("#file input[type=file]").set_input_files(path)
        self.page.locator("#file a, #file .file-preview").first.wait_for()
        self.page.locator("#read").click()

    @property
    def position(self) -> int:
        """The position of the session that the page shows."""
        match = re.search(r"has read ([\d,]+) tokens", self.page.locator("#position").inner_text())
        return int(match[1].replace(",", "")) if match else 0

    def reload(self) -> None:
        self._has_left = True
        self.page.reload()

    def close(self) -> None:
        self._has_left = True
        self.page.close()


Visit = Callable[..., Visitor]  # opens the page as a new visitor
