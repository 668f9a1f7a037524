"""A server as a process: kill -9 loses nothing that was acknowledged, SIGTERM ends it in order."""

import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamlm
from apps.server.launch import run
from tests.support.http_server import ServerProcess


@pytest.mark.slow
def test_a_life_of_a_server(model: Path, tmp_path: Path, prose: Callable[..., str]) -> None:
    store = tmp_path / "sessions"
    long = {"prompt": "It was", "max_tokens": 60_000, "stream": True}
    with ServerProcess(store, model) as server:
        assert server.first.startswith(f"streamlm serves {model.name} at http://127.0.0.1:")
        fed = server.ask("/sessions/fed/feed", prose(100).encode())
        done = server.ask("/v1/completions", {"session": "done", "prompt": "Call me"})
        forked = server.ask("/sessions/fed/fork", {"branch": "side", "tokens": 20})
        writing = server.events("/v1/completions", {**long, "session": "open"})
        begun = [next(writing) for _ in range(3)]
        server.end(signal.SIGKILL)
    assert len(begun) == 3
    checkpoint = streamlm.load(model, device="cpu")
    for name, position in (
        ("fed", fed["position"]),
        ("done", done["session"]["position"]),
        ("fed@side", forked["position"]),
    ):
        base, _, branch = name.partition("@")
        path = store / f"{base}.zarr"
        with streamlm.open(path, checkpoint, branch=branch or "main", readonly=True) as session:
            assert session.position == position
            if name == "done":
                assert done["choices"][0]["text"] in session.text()

    with ServerProcess(store, model, "--grace", "1") as server:
        again = server.ask("/v1/completions", {"session": "done", "max_tokens": 3})
        assert again["session"]["position"] == done["session"]["position"] + 3
        writing = server.events("/v1/completions", {**long, "session": "late"})
        shown: list[Any] = [next(writing) for _ in range(3)]
        server.process.send_signal(signal.SIGTERM)
        shown += writing
        assert server.wait() == 0
    *chunks, last = shown
    assert last["error"]["code"] == "stopping" and "is saved" in last["error"]["message"]
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    with streamlm.open(store / "late.zarr", checkpoint, readonly=True) as session:
        assert text in session.text()
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert [line["event"] for line in lines[-3:]] == ["stopping", "request", "stopped"]
    assert lines[-3]["running"] == 1


@pytest.mark.slow
def test_what_is_running_is_finished_at_the_end(model: Path, tmp_path: Path) -> None:
    """SIGTERM within the grace: the answer is whole, and saved."""
    store = tmp_path / "sessions"
    with ServerProcess(store, model, "--grace", "50") as server:
        fields = {"session": "s", "prompt": "Call me", "max_tokens": 150, "stream": True}
        writing = server.events("/v1/completions", fields)
        first = next(writing)
        server.process.send_signal(signal.SIGTERM)
        *_, last = [first, *writing]
        assert last["choices"][0]["finish_reason"] == "length"
        assert server.wait() == 0
    with streamlm.open(
        store / "s.zarr", streamlm.load(model, device="cpu"), readonly=True
    ) as session:
        assert session.position == last["session"]["position"] > 150


def test_options_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0.0.0.0 without keys: .* allowed: with --api-key-file"):
        run(str(tmp_path), host="0.0.0.0")
    keys = tmp_path / "keys"
    keys.write_text("short")
    with pytest.raises(ValueError, match="line 1; allowed: KEY or NAME KEY"):
        run(str(tmp_path), api_key_file=str(keys))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1:{port}: "):
            run(str(tmp_path), port=port, model="none")
