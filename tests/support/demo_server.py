"""What the demo's tests share: a server in a process of its own, and a browser to visit it with."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BOOK = (ROOT / "streamlm/assets/books/beyond-the-city.txt").read_text(encoding="utf-8")
LONG = BOOK * 10  # takes the tiny model a while
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# The browser asks nobody for anything of its own accord.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
CUT_OFF = ("AbortError: signal is aborted", "Connection errored out")
SECONDS = 60_000  # milliseconds that a busy machine may take for what takes one


class DemoServer:
    """`streamlm demo` in a process of its own.

    Args:
        early: do not wait until it is there; its port is taken.
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
        said, where = [], "starting at" if early else "the demo is at"
        for line in self._process.stderr:
            said.append(line)
            if found := re.search(rf"{where} (http://\S+?:(\d+)/)", line):
                self.address, self.port = found[1], int(found[2])
                return
        raise AssertionError("".join(said))

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal; gives its exit status."""
        self._process.send_signal(number)
        status = self._process.wait(timeout=60)
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._log.close()
        return status

    @property
    def log(self) -> str:
        """What it wrote to its standard output."""
        return Path(self._log.name).read_text(encoding="utf-8")

    def __enter__(self) -> "DemoServer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.end()


@contextmanager
def browser() -> Iterator[Any]:
    """A window of a headless Chromium; tests are skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs a chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium.new_context(accept_downloads=True)
        chromium.close()


class Visitor:
    """A page of the demo, and what went wrong in it.

    Args:
        address: where it finds the server, if a proxy stands before it.

    Attributes:
        outside: addresses other than the server's that the page has asked for.
        errors: of scripts, and what was written to the console as one.
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
        self.page.set_default_timeout(SECONDS)
        self.outside: list[str] = []
        self.errors: list[str] = []
        self._has_left = False
        self.page.on("request", self._asked)
        self.page.on("pageerror", lambda error: self._failed(str(error)))
        self.page.on(
            "console",
            lambda said: (
                self._failed(f"{said.text} {said.location['url']}")
                if said.type == "error"
                else None
            ),
        )

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.outside.append(request.url)

    def _failed(self, error: str) -> None:
        # Whoever leaves a page cuts its streams off, and Gradio's client says so.
        if not (self._has_left and any(cut in error for cut in CUT_OFF)):
            self.errors.append(error)

    def visit(self, session: str = "") -> "Visitor":
        self._has_left |= self.page.url != "about:blank"
        self.page.goto(self.address + (f"?session={session}" if session else ""))
        self.page.locator("#standing p").wait_for()
        return self

    @property
    def session(self) -> str:
        """The session that the address names."""
        return str(self.page.url).partition("session=")[2]

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def said(self, where: str, pattern: str) -> str:
        """Wait until a part of the page says something; gives all that it says."""
        from playwright.sync_api import TimeoutError as TookTooLong

        part = self.page.locator(f"#{where}", has_text=re.compile(pattern))
        try:
            part.wait_for()
        except TookTooLong:
            found = self.page.locator(f"#{where}").all_inner_texts()
            told = f"errors of the page: {self.errors}; log of the server:\n{self.server.log}"
            raise AssertionError(f"{pattern!r} in #{where}, which says {found}; {told}") from None
        return str(part.inner_text())

    def read(self, text: str, *, until: str = r"Read [\d,]+ tokens") -> str:
        self.tab("Read")
        self.page.get_by_label("Text that I paste").check()
        self.page.get_by_label("Text", exact=True).fill(text)
        self.page.locator("#read").click()
        return self.said("read-said", until)

    def read_file(self, path: Path) -> None:
        """Begin to read a file."""
        self.tab("Read")
        self.page.get_by_label("A file", exact=True).check()
        self.page.locator("#file input[type=file]").set_input_files(path)
        self.page.locator("#file a, #file .file-preview").first.wait_for()
        self.page.locator("#read").click()

    @property
    def position(self) -> int:
        """Tokens that the page says the session has read."""
        found = re.search(r"has read ([\d,]+) tokens", self.page.locator("#standing").inner_text())
        return int(found[1].replace(",", "")) if found else 0

    def reload(self) -> None:
        self._has_left = True
        self.page.reload()

    def close(self) -> None:
        self._has_left = True
        self.page.close()


Visit = Callable[..., Visitor]  # opens the page as a new visitor
