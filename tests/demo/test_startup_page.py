"""While the demo starts: what browsers and programs are told, and that nobody is lost."""

import json
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from apps.demo.serving.startup_page import Starting
from tests.support.demo_proxy import proxy
from tests.support.demo_server import DemoServer, Visitor, browser

HTML = {"Accept": "text/html,*/*"}


def ask(
    port: int, method: str = "GET", *, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, "/?session=a", body=body or None, headers=headers or {})
    with closing(connection), connection.getresponse() as answer:
        return answer, answer.read()


def test_browsers_get_a_page_and_programs_a_503() -> None:
    with Starting("127.0.0.1", 0) as starting:
        assert starting.address == f"http://127.0.0.1:{starting.port}/"
        for method, headers in (("GET", HTML), ("GET", {}), ("HEAD", HTML), ("POST", {})):
            answer, body = ask(starting.port, method, body=b"x" * 9000, headers=headers)
            assert answer.status == 503 and int(answer.headers["Retry-After"]) > 0
            assert answer.headers["Cache-Control"] == "no-store"
            if method == "HEAD":
                assert body == b""
            elif headers:
                assert b"The demo is starting" in body
                assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            else:
                assert json.loads(body) == {"error": "The demo is starting."}


class Real(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_nobody_is_refused_when_the_socket_is_handed_over() -> None:
    statuses: list[int] = []

    def wait(port: int) -> None:
        statuses.append(ask(port, headers={"X-Wait": "started"})[0].status)
        statuses.append(ask(port, headers=HTML)[0].status)

    with Starting("127.0.0.1", 0) as starting:
        waiting = [threading.Thread(target=wait, args=[starting.port]) for _ in range(3)]
        for thread in waiting:
            thread.start()
        time.sleep(0.2)
        assert statuses == []
        listening = starting.hand_over()
        time.sleep(0.2)  # they ask again, and nobody answers yet
        assert statuses == [204] * 3
        real = HTTPServer(("127.0.0.1", starting.port), Real, bind_and_activate=False)
        real.socket.close()
        real.socket = listening
        server = threading.Thread(target=real.serve_forever)
        server.start()
        for thread in waiting:
            thread.join()
        real.shutdown()
        server.join()
    assert statuses == [204] * 3 + [200] * 3


def test_a_port_that_is_taken() -> None:
    with (
        Starting("127.0.0.1", 0) as starting,
        pytest.raises(ValueError, match=f"port {starting.port} on 127.0.0.1: .*; allowed: another"),
    ):
        Starting("127.0.0.1", starting.port)
    with Starting("127.0.0.1", starting.port):  # given back
        pass


def test_a_program_that_comes_early_is_told_to_come_again(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("gradio")
    with DemoServer(tmp_path / "sessions", tiny_folder(), early=True) as server:
        answer, _ = ask(server.port)
        assert answer.status == 503
        until = time.monotonic() + 60
        while answer.status == 503 and time.monotonic() < until:
            time.sleep(int(answer.headers["Retry-After"]))
            answer, _ = ask(server.port)
        assert answer.status == 200


@pytest.mark.browser
@pytest.mark.parametrize("prefix", ["", "/streamlm"])
def test_the_page_turns_into_the_demo(
    tiny_folder: Callable[..., Path], tmp_path: Path, prose: Any, prefix: str
) -> None:
    pytest.importorskip("gradio")
    options = ["--root-path", prefix] if prefix else []
    with (
        browser() as chromium,
        DemoServer(tmp_path / "sessions", tiny_folder(), *options, early=True) as server,
        proxy(server.address, prefix) as through,
    ):
        visitor = Visitor(chromium, server, address=through if prefix else "", scheme="dark")
        visitor.page.goto(f"{visitor.address}?session=early")
        assert "is starting" in visitor.page.locator("#said").inner_text()
        visitor.page.locator("#standing p").wait_for()
        assert visitor.session == "early"
        visitor.read(prose(20))
        assert visitor.outside == []
        # The browser tells of the 503, and looks for an icon where a proxy has none.
        assert all("503" in error or "favicon.ico" in error for error in visitor.errors)
        visitor.close()


@pytest.mark.browser
def test_the_page_tells_where_the_demo_never_comes(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("gradio")
    with (
        browser() as chromium,
        DemoServer(tmp_path / "sessions", tiny_folder(), early=True) as server,
    ):
        page = chromium.new_page()
        page.goto(server.address)
        # A shell shows 130 for both: who is ended while importing may die of the signal itself.
        assert server.end() in (130, -signal.SIGINT)
        page.locator("#said", has_text="does not answer any more").wait_for()
        assert page.url == server.address
