"""The web server: file access, uploads, headers, streams of events, proxies and restarts."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamlm
from streamlm.checkpoints.checkpoint import Checkpoint
from tests.support.demo_proxy import proxy
from tests.support.demo_server import LONG, ROOT, DemoServer, Visitor

httpx = pytest.importorskip("httpx", reason="needs gradio: pip install 'streamlm[demo]'")


def test_files_of_the_server_are_not_served(server: DemoServer, tmp_path: Path) -> None:
    (server.store / "secret.txt").parent.mkdir(exist_ok=True)
    (server.store / "secret.txt").write_text("a secret")
    for path in ("/etc/passwd", server.store / "secret.txt", ROOT / "pyproject.toml"):
        for spelled in (str(path), f"../../../..{path}", str(path).replace("/", "%2f")):
            response = httpx.get(f"{server.address}gradio_api/file={spelled}")
            assert response.status_code in (400, 403, 404), spelled
            assert "a secret" not in response.text


def test_upload_names_are_not_used_as_paths(server: DemoServer) -> None:
    for name in ("../../../evil.txt", "/tmp/evil-absolute.txt", "a\\..\\evil.txt", "x" * 300):
        response = httpx.post(
            f"{server.address}gradio_api/upload", files={"files": (name, b"evil")}
        )
        if response.status_code == 200:
            (path,) = response.json()
            assert ".." not in Path(path).parts and "streamlm-demo-" in path
    assert not Path("/tmp/evil-absolute.txt").exists()
    large = {"files": ("large.txt", b"a" * 101_000_000)}
    assert httpx.post(f"{server.address}gradio_api/upload", files=large).status_code == 413


def test_pages_load_resources_from_their_server_only(server: DemoServer) -> None:
    page = httpx.get(server.address)
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    assert "HttpOnly" in page.headers["set-cookie"]
    assert "fonts.googleapis" not in page.text


def events(lines: Iterator[str]) -> Iterator[str]:
    """The kinds of events in a stream, without heartbeats."""
    for line in lines:
        if line.startswith("data: "):
            kind = json.loads(line.removeprefix("data: "))["msg"]
            if kind in ("process_completed", "close_stream"):
                yield kind


@pytest.mark.parametrize("agent", ["Mozilla/5.0", "a program"])
def test_the_stream_stays_open_for_browsers_only(server: DemoServer, agent: str) -> None:
    """A browser's event stream stays open between requests; a program's closes."""
    api, page = f"{server.address}gradio_api", f"page-{len(agent)}"
    functions = httpx.get(f"{server.address}config").json()["dependencies"]
    request = {
        "data": [],
        "fn_index": next(each["id"] for each in functions if each["api_name"] == "list_sessions"),
        "session_hash": page,
    }
    headers = {"User-Agent": agent}
    with httpx.Client(headers=headers, timeout=30) as client:
        assert client.post(f"{api}/queue/join", json=request).status_code == 200
        with client.stream("GET", f"{api}/queue/data?session_hash={page}") as stream:
            kinds = events(stream.iter_lines())
            assert next(kinds) == "process_completed"
            if agent == "a program":
                assert list(kinds) == ["close_stream"]
                return
            for _ in range(2):
                time.sleep(0.2)
                assert client.post(f"{api}/queue/join", json=request).status_code == 200
                assert next(kinds) == "process_completed"


@pytest.mark.browser
def test_behind_a_proxy(
    chromium: Any, model: Path, tiny: Checkpoint, tmp_path: Path, prose: Any
) -> None:
    """Under a path of another server, the page works and requests nothing outside that path."""
    store = tmp_path / "sessions"
    with (
        DemoServer(store, model, "--root-path", "/streamlm") as server,
        proxy(server.address, "/streamlm") as address,
    ):
        visitor = Visitor(chromium, server, address=address).visit("far")
        visitor.read(prose(40))
        visitor.tab("Write")
        visitor.page.locator("#write").click()
        visitor.wait_for("write-status", r"Generated \d+ tokens")
        # Browsers request an icon at the root, which belongs to another server.
        errors = [error for error in visitor.errors if "/favicon.ico" not in error]
        assert visitor.outside == errors == []
        visitor.close()
    with streamlm.open(store / "far.zarr", tiny, create=False) as session:
        assert session.position > 40 + 100


@pytest.mark.browser
def test_a_restart_loses_nothing(
    chromium: Any, model: Path, tiny: Checkpoint, long: Path, tmp_path: Path
) -> None:
    store = tmp_path / "sessions"
    with DemoServer(store, model) as server:
        visitor = Visitor(chromium, server).visit("kept")
        visitor.read_file(long)
        visitor.wait_for("read-bar", "tokens/s")
        port = server.port
        assert server.end() == 130  # while reading
    with streamlm.open(store / "kept.zarr", tiny, readonly=True) as session:
        kept = session.position
        assert kept > 0 and LONG.startswith(session.text())
    with DemoServer(store, model, port=port) as server:
        visitor.visit("kept")
        assert visitor.position == kept
        visitor.read_file(long)
        visitor.wait_for("read-bar", "tokens/s")
        server.end(signal.SIGKILL)
    with streamlm.open(store / "kept.zarr", tiny) as session:
        assert session.position >= kept and LONG.startswith(session.text())
    visitor.close()
