"""The startup page: responses while the demo starts, and the demo in its place."""

import json
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from apps.demo.serving.web_server import WebServer
from tests.support.demo_proxy import proxy
from tests.support.demo_server import DemoServer, Visitor, browser

HTML = {"Accept": "text/html,*/*"}


def request(
    port: int, method: str = "GET", *, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, "/?session=a", body=body or None, headers=headers or {})
    with closing(connection), connection.getresponse() as response:
        return response, response.read()


def test_browsers_get_a_page_and_programs_a_503() -> None:
    with WebServer("127.0.0.1", 0) as startup:
        assert startup.address == f"http://127.0.0.1:{startup.port}/"
        for method, headers in (("GET", HTML), ("GET", {}), ("HEAD", HTML), ("POST", {})):
            response, body = request(startup.port, method, body=b"x" * 9000, headers=headers)
            assert response.status == 503 and int(response.headers["Retry-After"]) > 0
            assert response.headers["Cache-Control"] == "no-store"
            if method == "HEAD":
                assert body == b""
            elif headers:
                assert b"The demo is starting" in body
                assert "default-src 'none'" in response.headers["Content-Security-Policy"]
            else:
                assert json.loads(body) == {"error": "The demo is starting."}


def test_no_connection_is_refused_while_the_demo_comes() -> None:
    statuses: list[int] = []
    events: list[str] = []

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        events.append("begins")
        yield
        events.append("ends")

    def wait(port: int) -> None:
        statuses.append(request(port, headers={"X-Wait": "started"})[0].status)
        statuses.append(request(port, headers=HTML)[0].status)

    demo = Starlette(routes=[Route("/", lambda _: PlainTextResponse("demo"))], lifespan=life)
    with WebServer("127.0.0.1", 0) as startup:
        waiting = [threading.Thread(target=wait, args=[startup.port]) for _ in range(3)]
        for thread in waiting:
            thread.start()
        time.sleep(0.2)
        assert statuses == [] and events == []
        startup.mount(demo)
        for thread in waiting:
            thread.join()
        assert events == ["begins"]
    assert sorted(statuses) == [200] * 3 + [204] * 3
    assert events == ["begins", "ends"]


def test_a_demo_that_fails_to_start_is_reported() -> None:
    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        raise RuntimeError("no disk")
        yield

    with WebServer("127.0.0.1", 0) as startup:
        with pytest.raises(RuntimeError, match="no disk"):
            startup.mount(Starlette(lifespan=life))
        assert request(startup.port)[0].status == 503


def test_a_port_in_use_is_refused() -> None:
    with (
        WebServer("127.0.0.1", 0) as startup,
        pytest.raises(ValueError, match=f"port {startup.port} on 127.0.0.1: .*; allowed: another"),
    ):
        WebServer("127.0.0.1", startup.port)
    with WebServer("127.0.0.1", startup.port):  # released
        pass


def test_an_early_program_gets_a_503(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    with DemoServer(tmp_path / "sessions", tiny_folder(), early=True) as server:
        response, _ = request(server.port)
        assert response.status == 503
        until = time.monotonic() + 60
        while response.status == 503 and time.monotonic() < until:
            time.sleep(int(response.headers["Retry-After"]))
            response, _ = request(server.port)
        assert response.status == 200


@pytest.mark.browser
@pytest.mark.parametrize("prefix", ["", "/streamlm"])
def test_the_startup_page_reloads_into_the_demo(
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
        assert "is starting" in visitor.page.locator("#status").inner_text()
        visitor.page.locator("#position p").wait_for()
        assert visitor.session == "early"
        visitor.read(prose(20))
        assert visitor.outside == []
        # The browser reports the 503, and requests an icon that the proxy lacks.
        assert all("503" in error or "favicon.ico" in error for error in visitor.errors)
        visitor.close()


@pytest.mark.browser
def test_the_startup_page_reports_a_failed_start(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("gradio")
    with (
        browser() as chromium,
        DemoServer(tmp_path / "sessions", tiny_folder(), early=True) as server,
    ):
        page = chromium.new_page()
        page.goto(server.address)
        # A shell shows 130 for both: a process may die of the signal itself while importing.
        assert server.end() in (130, -signal.SIGINT)
        page.locator("#status", has_text="has stopped responding").wait_for()
        assert page.url == server.address
