"""A browser's event stream stays open between requests; a program's closes."""

import json
import time
from collections.abc import Iterator

import pytest

from tests.support.demo_server import DemoServer

httpx = pytest.importorskip("httpx", reason="needs gradio: pip install 'streamlm[demo]'")


def events(lines: Iterator[str]) -> Iterator[str]:
    """The kinds of events in a stream, without heartbeats."""
    for line in lines:
        if line.startswith("data: "):
            kind = json.loads(line.removeprefix("data: "))["msg"]
            if kind in ("process_completed", "close_stream"):
                yield kind


@pytest.mark.parametrize("agent", ["Mozilla/5.0", "a program"])
def test_the_stream_stays_open_for_browsers_only(server: DemoServer, agent: str) -> None:
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
