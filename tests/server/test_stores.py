"""Sessions of a server in object storage, stores that fail, and what left memory."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

pytest.importorskip("moto", reason="needs moto[s3]")
pytest.importorskip("obstore", reason="needs obstore: pip install 'streamlm[objects]'")

from apps.server.keys import Keys
from memory_store import StoreError
from tests.support.s3 import S3Server

KEY = "ada-has-this-long-key"


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = S3Server()
    server.make_bucket("shelf")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    yield f"s3://shelf/{uuid.uuid4().hex}"
    server.stop()


def test_object_storage(serve: Callable[..., TestClient], shelf: str) -> None:
    client = serve(store=shelf, keys=Keys([(KEY, "ada")]))
    client.headers["Authorization"] = f"Bearer {KEY}"
    fed = client.post("/sessions/s/feed", content=b"Call me Ishmael. It was the whale. ")
    assert fed.status_code == 200, fed.text
    done = client.post("/v1/completions", json={"session": "s", "max_tokens": 4}).json()
    forked = client.post("/sessions/s/fork", json={"branch": "side"})
    assert forked.status_code == 201, forked.text
    missing = client.get("/sessions/none")
    assert missing.status_code == 404 and "s3://" not in missing.text
    client.app.state.service.close()
    again = serve(store=shelf, keys=Keys([(KEY, "ada")]))
    again.headers["Authorization"] = f"Bearer {KEY}"
    rows = {row["name"]: row["position"] for row in again.get("/sessions").json()["sessions"]}
    assert set(rows) == {"s", "s@side"} and rows["s"] >= done["session"]["position"]
    assert again.delete("/sessions/s").status_code == 200


def test_two_servers_of_one_session(serve: Callable[..., TestClient], shelf: str) -> None:
    """A commit on top of another's is refused and lost to nobody: the next request reads it."""
    one, other = serve(store=shelf), serve(store=shelf)
    fields = {"session": "s", "prompt": "Call me", "max_tokens": 4}
    assert one.post("/v1/completions", json=fields).status_code == 200
    ahead = other.post("/v1/completions", json=fields).json()["session"]["position"]
    for behind, streams in ((one, False), (other, True)):
        refused = behind.post("/v1/completions", json={**fields, "stream": streams})
        assert '"conflict"' in refused.text and refused.status_code == (200 if streams else 409)
        now = behind.post("/v1/completions", json=fields).json()["session"]["position"]
        assert now > ahead
        ahead = now


def test_a_store_that_fails(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is answered as finished, and the client is told not to repeat it."""
    begun = client.post("/v1/completions", json={"session": "s", "prompt": "Call me"})
    assert begun.status_code == 200
    with client.app.state.service.sessions.use("/s") as session:
        store = session.live.require_store("test").store

    def fail(*_: object, **__: object) -> None:
        raise StoreError(f"{store.name}: the disk is gone. Get another.")

    fields = {"session": "s", "max_tokens": 3}
    with monkeypatch.context() as patched:
        patched.setattr(store, "commit", fail)
        answer = client.post("/v1/completions", json=fields)
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "store_error"
        assert answer.headers["x-should-retry"] == "false"
        assert "s.zarr: the disk is gone" in answer.text and store.name not in answer.text
        streamed = client.post("/v1/completions", json={**fields, "stream": True})
        assert '"store_error"' in streamed.text and "[DONE]" not in streamed.text
        assert '"finish_reason": "length"' not in streamed.text
    assert "streamlm_store_errors_total 2.0" in client.get("/metrics").text
    # What was written is still there, and the next request saves it.
    position = begun.json()["session"]["position"]
    saved = client.post("/v1/completions", json=fields).json()
    assert saved["session"]["position"] == position + 9


def test_what_a_killed_creation_has_left(client: TestClient, tmp_path: Path) -> None:
    """An empty folder of the session's name is no obstacle; one with commits is not overwritten."""
    (tmp_path / "sessions" / "s.zarr" / "commits").mkdir(parents=True)
    assert client.get("/sessions/s").status_code == 404
    assert client.post("/sessions/s/feed", content=b"Call me Ishmael. ").status_code == 200
    damaged = tmp_path / "sessions" / "t.zarr" / "commits" / "one"
    damaged.mkdir(parents=True)
    answer = client.post("/sessions/t/feed", content=b"Call me Ishmael. ")
    assert answer.status_code == 404 and "no session here" in answer.text and damaged.exists()


def test_recall(client: TestClient, prose: Callable[..., str]) -> None:
    text = f"{prose(60)} The parrot Esmeralda knows the number 7319. {prose(200)}"
    assert client.post("/sessions/s/feed", content=text.encode()).status_code == 200
    client.post("/sessions/s/fork", json={"branch": "without"})
    asked = {"prompt": "What number does the parrot Esmeralda know?", "max_tokens": 1}
    used = {}
    for name, recall in (("s", 1), ("s@without", 0)):
        answer = client.post("/v1/completions", json={**asked, "session": name, "recall": recall})
        used[name] = answer.json()["usage"]["prompt_tokens"]
    assert used["s"] > used["s@without"] + 10
    shown = client.get("/sessions/s/tokens").json()["text"]
    assert shown.count("Esmeralda knows the number 7319") == 2
