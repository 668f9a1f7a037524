"""The event stream of a page stays open between its requests; a program's ends."""

import json
import time
from collections.abc import Iterator

import pytest

from tests.support.demo_server import DemoServer

httpx = pytest.importorskip("httpx", reason="needs gradio: pip install 'streamlm[demo]'")


def news(lines: Iterator[str]) -> Iterator[str]:
    """What kinds of news a stream brings, but for signs of life."""
    for line in lines:
        if line.startswith("data: "):
            kind = json.loads(line.removeprefix("data: "))["msg"]
            if kind in ("process_completed", "close_stream"):
                yield kind


@pytest.mark.parametrize("agent", ["Mozilla/5.0", "a program"])
def test_a_page_hears_of_what_it_asks_for_while_its_stream_ends(
    server: DemoServer, agent: str
) -> None:
    """A program's stream ends with its news; a page's goes on with those of its next request."""
    api, page = f"{server.address}gradio_api", f"page-{len(agent)}"
    asked = httpx.get(f"{server.address}config").json()["dependencies"]
    request = {
        "data": [],
        "fn_index": next(each["id"] for each in asked if each["api_name"] == "list_sessions"),
        "session_hash": page,
    }
    headers = {"User-Agent": agent}
    with httpx.Client(headers=headers, timeout=30) as client:
        assert client.post(f"{api}/queue/join", json=request).status_code == 200
        with client.stream("GET", f"{api}/queue/data?session_hash={page}") as stream:
            found = news(stream.iter_lines())
            assert next(found) == "process_completed"
            if agent == "a program":
                assert list(found) == ["close_stream"]
                return
            for _ in range(2):
                time.sleep(0.2)
                assert client.post(f"{api}/queue/join", json=request).status_code == 200
                assert next(found) == "process_completed"
