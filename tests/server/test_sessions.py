"""/sessions: begin, feed, score, show, fork, rewind, export, import and delete."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import streamlm
from apps.server.keys import Keys
from streamlm.checkpoints.checkpoint import Checkpoint
from tests.support.asgi import events, hang_up

ADA, BOB = "ada-has-this-long-key", "bob-has-another-long-key"


def ok(answer: Any, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json()


def refused(answer: Any, status: int, message: str) -> None:
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]["message"]


def test_a_session_from_beginning_to_end(
    client: TestClient, tiny: Checkpoint, tmp_path: Path, prose: Callable[..., str]
) -> None:
    text = prose(200)
    assert ok(client.get("/sessions")) == {"sessions": []}
    begun = ok(client.post("/sessions", json={"name": "moby"}), 201)
    assert (begun["position"], begun["branch"], begun["parent"]) == (0, "main", None)
    report = ok(client.post("/sessions/moby/feed?score=true", content=text.encode()))
    with streamlm.open(tmp_path / "alone.zarr", tiny) as alone:
        (tmp_path / "text.txt").write_text(text, encoding="utf-8")
        wanted = alone.feed(tmp_path / "text.txt", score=True)
        assert report["position"] == wanted.position == report["tokens"]
        assert report["bits_per_byte"] == pytest.approx(wanted.bits_per_byte)
        part = alone.text(10, 40)
    found = ok(client.get("/sessions/moby"))
    assert found["position"] == report["position"] and found["branches"] == ["main"]
    assert found["parent"]["snapshot"] == found["saved"]["snapshot"] - 1
    assert found["snapshots"] == 2 and found["bytes"] > 0
    shown = ok(client.get("/sessions/moby/tokens?start=10&stop=40"))
    assert shown["text"] == part and len(shown["ids"]) == 30
    memory = ok(client.get("/sessions/moby/memory"))
    assert memory["position"] == found["position"] and memory["slots"]

    forked = ok(client.post("/sessions/moby/fork", json={"branch": "side", "tokens": 50}), 201)
    assert (forked["name"], forked["position"]) == ("moby@side", 50)
    rewound = ok(client.post("/sessions/moby/rewind", json={"to": 30}))
    assert rewound["position"] == 30 and rewound["snapshots"] > found["snapshots"]
    assert ok(client.get("/sessions/moby/tokens"))["text"] == "".join(
        [ok(client.get("/sessions/moby@side/tokens?stop=30"))["text"]]
    )
    back = ok(client.post("/sessions/moby/rewind", json={"snapshot": found["saved"]["snapshot"]}))
    assert back["position"] == found["position"]
    names = {row["name"]: row["position"] for row in ok(client.get("/sessions"))["sessions"]}
    assert names == {"moby": back["position"], "moby@side": 50}

    exported = client.get("/sessions/moby/export")
    assert exported.headers["content-type"] == "application/zip"
    imported = ok(client.post("/sessions/copy/import", content=exported.content), 201)
    assert imported["position"] == back["position"]
    more = {"session": "copy", "max_tokens": 5, "seed": 1}
    ok(client.post("/v1/completions", json=more))
    assert not list((tmp_path / "spool").iterdir())
    assert ok(client.delete("/sessions/moby"))["deleted"]
    refused(client.get("/sessions/moby@side"), 404, "there are: copy")
    assert not (tmp_path / "sessions" / "moby.zarr").exists()


def test_scores_change_nothing(client: TestClient, tiny: Checkpoint, tmp_path: Path) -> None:
    ok(client.post("/sessions/s/feed", content=b"Call me Ishmael. It was the whale. "))
    before = ok(client.get("/sessions/s"))
    scored = ok(client.post("/sessions/s/score?logprobs=true", content=b"It was the sea."))
    assert ok(client.get("/sessions/s")) == before
    with streamlm.open(tmp_path / "sessions" / "s.zarr", tiny, readonly=True) as session:
        wanted = session.score("It was the sea.", logprobs=True)
    assert scored["bits_per_byte"] == pytest.approx(wanted.bits_per_byte)
    assert scored["ids"] == wanted.ids and scored["logprobs"] == pytest.approx(wanted.logprobs)
    refused(client.post("/sessions/none/score", content=b"x"), 404, "no session 'none'")


@pytest.mark.parametrize("kind", ["application/x-ndjson", "text/event-stream"])
def test_progress(client: TestClient, prose: Callable[..., str], kind: str) -> None:
    text = prose(700).encode()
    answer = client.post("/sessions/s/feed", content=text, headers={"Accept": kind})
    assert answer.headers["content-type"].startswith(kind)
    if kind == "text/event-stream":
        lines = events(answer.text)
    else:
        lines = [json.loads(line) for line in answer.text.splitlines()]
    *progress, last = lines
    assert progress and last["done"] and not any(line["done"] for line in progress)
    positions = [line["position"] for line in progress]
    assert positions == sorted(positions) and last["position"] == last["tokens"]
    assert f"streamlm_tokens_read_total {float(last['tokens'])}" in client.get("/metrics").text


def test_a_long_body_is_on_disk_before_it_is_read(
    serve: Callable[..., TestClient], tmp_path: Path
) -> None:
    """No part of it is kept in memory but the newest; too long a one is refused early."""
    client = serve(max_body=3 << 20)
    sizes: list[int] = []

    def parts(n: int) -> Iterator[bytes]:
        for _ in range(n):
            files = [path for path in (tmp_path / "spool").rglob("body")]
            sizes.extend(path.stat().st_size for path in files)
            yield b"\0" * (1 << 20)

    refused(client.post("/sessions/s/feed", content=parts(3)), 400, "the body looks binary")
    refused(client.post("/sessions/s/feed", content=parts(9)), 413, "allowed: at most that")
    refused(client.post("/sessions/s/feed", content=b"x" * (4 << 20)), 413, "3,145,728 bytes")
    assert not list((tmp_path / "spool").iterdir())


def test_an_interrupted_feed_goes_on(
    serve: Callable[..., TestClient], prose: Callable[..., str]
) -> None:
    """The client hung up; it sends the same body again, and nothing is read twice."""
    client, body = serve(), prose(2_000).encode()
    kind = "application/x-ndjson"
    asyncio.run(hang_up(client.app, "/sessions/s/feed", body, behind=3, accept=kind))
    assert client.app.state.service.engine.load == (0, 0)
    before = ok(client.get("/sessions/s"))["position"]
    report = ok(client.post("/sessions/s/feed", content=body))
    assert 0 < before < report["position"] and report["skipped_bytes"] > 0
    assert report["tokens"] == report["position"] - before
    whole = ok(client.post("/sessions/t/feed", content=body))
    assert whole["position"] == report["position"]


def test_bad_requests(client: TestClient, prose: Callable[..., str]) -> None:
    ok(client.post("/sessions/s/feed", content=prose(30).encode()))
    refused(client.post("/sessions", json={"name": "s"}), 409, "'s' exists already")
    refused(client.post("/sessions/s/import", content=b"x"), 409, "'s' exists already")
    refused(client.post("/sessions/x/import", content=b"x"), 400, "the body: not an exported")
    refused(client.post("/sessions", json={"name": "a/b"}), 400, "allowed: NAME")
    refused(client.post("/sessions", json={"name": "s@b"}), 400, "branches are forked")
    refused(client.post("/sessions", json={"nme": "b"}), 400, "unknown field 'nme'")
    refused(client.post("/sessions/s/fork", json={"branch": "a b"}), 400, "allowed: NAME")
    refused(client.post("/sessions/s/fork", json={"branch": "main"}), 409, "exists already")
    refused(client.post("/sessions/s/fork", json={"tokens": 10**6}), 400, "allowed: 0 to ")
    refused(client.post("/sessions/none/fork", json={}), 404, "no session 'none'")
    refused(client.post("/sessions/s/rewind", json={}), 400, "one of to, by, snapshot and time")
    refused(client.post("/sessions/s/rewind", json={"to": 10**6}), 400, "allowed: 0 to ")
    refused(client.post("/sessions/s/rewind", json={"time": "1970"}), 400, "1970")
    refused(client.get("/sessions/s/tokens?stop=9999"), 400, "stop = '9999'; allowed: 0 to ")
    refused(client.post("/sessions/s/feed?errors=x", content=b"x"), 400, "'strict', 'replace'")
    refused(client.post("/sessions/s/feed", content=b""), 400, "nothing to read: the body")
    refused(client.post("/sessions/s/feed", content=b"\xff\xfe"), 400, "the body, block at byte 0")
    refused(client.delete("/sessions/none"), 404, "no session 'none'")
    refused(client.get("/sessions/..%2f..%2fetc"), 404, "")
    refused(client.get("/sessions/s@none"), 404, "no branch 'none'")


def test_a_session_in_use(client: TestClient) -> None:
    """It cannot be deleted, and what comes for it waits its turn."""
    ok(client.post("/sessions/s/feed", content=b"Call me Ishmael. "))
    service, go_on, inside = client.app.state.service, threading.Event(), threading.Event()
    with service.sessions.use("/s") as session:
        handle = service.engine.call(session, lambda _: inside.set() or go_on.wait(60), aside=True)
        assert inside.wait(60)
        refused(client.delete("/sessions/s"), 409, "is in use")
        threading.Timer(0.2, go_on.set).start()
        ok(client.post("/sessions/s/fork", json={"branch": "side"}), 201)
        assert handle.result(60)
    ok(client.delete("/sessions/s"))


def test_another_process_holds_the_session(
    client: TestClient, tiny: Checkpoint, tmp_path: Path
) -> None:
    with streamlm.open(tmp_path / "sessions" / "s.zarr", tiny) as session:
        session.feed("Call me Ishmael. ")
        answer = client.post("/v1/completions", json={"session": "s"})
        assert answer.status_code == 409 and answer.json()["error"]["code"] == "in_use"
        assert str(tmp_path) not in answer.text
        assert ok(client.get("/sessions/s"))["position"] == session.position


def test_more_sessions_than_memory(serve: Callable[..., TestClient]) -> None:
    client = serve(session_bytes=0)
    for _ in range(2):
        for name in ("a", "b", "c"):
            ok(client.post(f"/sessions/{name}/feed", content=b"Call me Ishmael. "))
    rows = ok(client.get("/sessions"))["sessions"]
    assert len({row["position"] for row in rows}) == 1 and len(rows) == 3
    assert "streamlm_sessions_open 0.0" in client.get("/metrics").text


def test_nothing_crosses_between_keys(serve: Callable[..., TestClient]) -> None:
    client = serve(keys=Keys([(ADA, "ada"), (BOB, "bob")]))

    def call(key: str, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {key}"}
        return client.request(method, path, headers=headers, **options)

    ok(call(ADA, "POST", "/sessions/diary/feed", content=b"The word is Esmeralda-7319. "))
    assert ok(call(BOB, "GET", "/sessions")) == {"sessions": []}
    for method, path, options in (
        ("GET", "/sessions/diary", {}),
        ("GET", "/sessions/diary/tokens", {}),
        ("GET", "/sessions/diary/memory", {}),
        ("GET", "/sessions/diary/export", {}),
        ("DELETE", "/sessions/diary", {}),
        ("POST", "/sessions/diary/fork", {"json": {}}),
        ("POST", "/sessions/diary/rewind", {"json": {"to": 1}}),
        ("POST", "/sessions/diary/score", {"content": b"x"}),
    ):
        answer = call(BOB, method, path, **options)
        refused(answer, 404, "there are: none yet")
        assert "Esmeralda" not in answer.text and "ada" not in answer.text
    ok(call(BOB, "POST", "/sessions/diary/feed", content=b"Hello. "))
    assert "Esmeralda" not in call(BOB, "GET", "/sessions/diary/tokens").text
    assert "Esmeralda" in call(ADA, "GET", "/sessions/diary/tokens").text
