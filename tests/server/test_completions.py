"""POST /v1/completions: its fields, its streams, its sessions, and clients that hang up."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import streamlm
from apps.server.keys import Keys
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.engine import Engine
from streamlm.sessions.session import Session
from tests.support.asgi import events, hang_up

PATH = "/v1/completions"
ADA, BOB = "ada-has-this-long-key", "bob-has-another-long-key"


def ask(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post(PATH, json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def text_of(answer: dict[str, Any], index: int = 0) -> str:
    choice = answer["choices"][index]
    assert choice["index"] == index
    return choice["text"]


def test_the_text_is_that_of_the_engine(client: TestClient, tiny: Checkpoint) -> None:
    with Engine(tiny, rows=4) as engine:
        handle = engine.generate(Session(tiny), "Call me", max_tokens=20, seed=7)
        wanted = "".join(handle)
    answer = ask(client, prompt="Call me", max_tokens=20, seed=7, user="u", model=None)
    assert text_of(answer) == wanted and answer["object"] == "text_completion"
    n_prompt = len(tiny.tokenizer.encode("Call me"))
    assert answer["usage"] == {
        "prompt_tokens": n_prompt, "completion_tokens": 20, "total_tokens": n_prompt + 20
    }  # fmt: skip
    assert answer["choices"][0]["finish_reason"] == "length" and "session" not in answer
    assert text_of(ask(client, prompt="Call me")) != text_of(ask(client, prompt="Call me"))


def test_several_choices_of_several_prompts(client: TestClient, tiny: Checkpoint) -> None:
    prompts = ["Call me", "It was"]
    answer = ask(client, prompt=prompts, n=3, max_tokens=8, seed=1)
    texts = [text_of(answer, index) for index in range(6)]
    assert len(set(texts)) == 6
    for index, prompt in enumerate(prompts):
        for n in range(3):
            alone = ask(client, prompt=prompt, max_tokens=8, seed=1 + n)
            assert text_of(alone) == texts[3 * index + n]
    n_prompt = sum(len(tiny.tokenizer.encode(prompt)) for prompt in prompts)
    assert answer["usage"]["prompt_tokens"] == n_prompt  # each was read once
    assert answer["usage"]["completion_tokens"] == 48


def test_streams(client: TestClient) -> None:
    fields = {"prompt": "Call me", "max_tokens": 12, "seed": 3, "n": 2, "echo": True}
    whole = ask(client, **fields)
    streamed = client.post(
        PATH, json={**fields, "stream": True, "stream_options": {"include_usage": True}}
    )
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events(streamed.text)
    assert done == "[DONE]" and usage["usage"] == whole["usage"] and usage["choices"] == []
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["usage"] is None for chunk in chunks)
    for index in range(2):
        mine = [each for chunk in chunks for each in chunk["choices"] if each["index"] == index]
        assert "".join(choice["text"] for choice in mine) == text_of(whole, index)
        assert [choice["finish_reason"] for choice in mine[-2:]] == [None, "length"]
        assert len(mine) > 8
    assert text_of(whole).startswith("Call me")


def test_stops(client: TestClient) -> None:
    text = text_of(ask(client, prompt="Call me", max_tokens=30, seed=4))
    stop = text[8:10]
    answer = ask(client, prompt="Call me", max_tokens=30, seed=4, stop=[stop, "\0"])
    assert text_of(answer) == text[: text.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert ask(client, prompt="Call me", max_tokens=0)["choices"][0]["finish_reason"] == "length"


def test_logprobs(client: TestClient, tiny: Checkpoint) -> None:
    fields = {"prompt": "Call me Ishmael.", "max_tokens": 9, "seed": 5, "echo": True}
    plain, answer = ask(client, **fields), ask(client, **fields, logprobs=3)
    assert text_of(plain) == text_of(answer)
    found = answer["choices"][0]["logprobs"]
    assert "".join(found["tokens"]) == text_of(answer)
    n_prompt = len(tiny.tokenizer.encode("Call me Ishmael."))
    assert len(found["tokens"]) == n_prompt + 9 == len(found["token_logprobs"])
    assert found["top_logprobs"][:n_prompt] == [None] * n_prompt
    assert all(len(top) == 3 for top in found["top_logprobs"][n_prompt:])
    for token, at in zip(found["tokens"], found["text_offset"], strict=True):
        assert text_of(answer)[at:].startswith(token)
    report = Session(tiny).score("Call me Ishmael.", logprobs=True)
    assert found["token_logprobs"][:n_prompt] == pytest.approx(report.logprobs, abs=1e-4)
    streamed = client.post(PATH, json={**fields, "logprobs": 3, "stream": True}).text
    parts = [chunk["choices"][0]["logprobs"] for chunk in events(streamed)[:-1]]
    for name in ("tokens", "text_offset", "token_logprobs"):
        assert [each for part in parts if part for each in part[name]] == found[name]


def test_a_session_goes_on_and_is_saved(
    client: TestClient, tiny: Checkpoint, tmp_path: Path
) -> None:
    first = ask(client, prompt="Call me", max_tokens=10, session="moby", echo=True, seed=1)
    streamed = client.post(
        PATH, json={"max_tokens": 7, "session": "moby@main", "stream": True}
    ).text
    *_, last, done = events(streamed)
    assert done == "[DONE]"
    n_prompt = len(tiny.tokenizer.encode("Call me"))
    assert first["session"] == {"name": "moby", "position": n_prompt + 10}
    assert last["session"]["position"] == n_prompt + 17
    second = "".join(chunk["choices"][0]["text"] for chunk in events(streamed)[:-1])
    path = tmp_path / "sessions" / "moby.zarr"
    with streamlm.open(path, tiny, readonly=True) as saved:  # while the server has it open
        assert saved.text().startswith((text_of(first) + second)[:-3])
        assert saved.position == n_prompt + 17
    missing = client.post(PATH, json={"session": "moby@side"})
    assert missing.status_code == 404 and str(tmp_path) not in missing.text
    commits = "streamlm_commits_total 3.0"  # the empty beginning is one
    assert commits in client.get("/metrics").text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1), ("max_tokens", 10**9), ("max_tokens", "9"), ("max_tokens", True),
        ("temperature", -1), ("temperature", "hot"), ("top_p", 0), ("top_k", 1.5), ("min_p", 2),
        ("stop", [""]), ("stop", [1]), ("stop", ["x"] * 17), ("seed", 0.5), ("n", 0), ("n", 65),
        ("prompt", [1, 2]), ("prompt", {}), ("echo", "yes"), ("stream", 1), ("logprobs", 99),
        ("logit_bias", {"5": 1}), ("presence_penalty", 0.5), ("suffix", "end"), ("best_of", 4),
        ("session", 1), ("session", "../x"), ("recall", 1), ("stream_options", {}), ("toks", 1),
        ("model", "gpt-4"),
    ],
)  # fmt: skip
def test_bad_fields_are_named(client: TestClient, field: str, value: Any) -> None:
    answer = client.post(PATH, json={"prompt": "x", field: value})
    assert answer.status_code == (404 if field == "model" else 400)
    error = answer.json()["error"]
    assert field in error["message"] and "allowed: " in error["message"]
    assert error["param"] == field or value == "../x"
    assert error["type"] in ("invalid_request_error", "not_found_error")


def test_what_clients_send_that_changes_nothing(client: TestClient) -> None:
    ask(
        client,
        **{"prompt": "x", "max_tokens": 1, "user": "me", "logit_bias": {}, "best_of": 1, "n": 1},
        **{"presence_penalty": 0.0, "frequency_penalty": 0, "suffix": None, "stop": None},
        **{"stream": False, "stream_options": None, "metadata": {"a": "b"}, "seed": -1},
    )


def test_bad_bodies(serve: Callable[..., TestClient]) -> None:
    client = serve(max_json=1000)
    for body, status in (
        (b"{", 400), (b"[]", 400), (b'{"seed": NaN}', 400), (b"[" * 900, 400), (b"\xff", 400),
        (b'{"prompt": "%s"}' % (b"x" * 1000), 413),
    ):  # fmt: skip
        answer = client.post(PATH, content=body)
        assert answer.status_code == status and "message" in answer.json()["error"]
    parts = client.post(PATH, content=iter([b'{"prompt": "', b"x" * 2000, b'"}']))
    assert parts.status_code == 413  # no length was announced
    odd = client.post(PATH, content=rb'{"prompt": "a\ud800b", "max_tokens": 1, "echo": true}')
    assert text_of(odd.json()).startswith("a?b")


def test_busy(serve: Callable[..., TestClient]) -> None:
    client = serve(max_waiting=1)
    answer = client.post(PATH, json={"prompt": ["x"] * 64, "max_tokens": 50})
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["code"] == "busy"
    engine = client.app.state.service.engine
    assert engine.load == (0, 0) and engine.batch.n_free == 4  # the others were cancelled
    ask(client, prompt="x", max_tokens=1)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_row(
    serve: Callable[..., TestClient], tiny: Checkpoint, tmp_path: Path, stream: bool
) -> None:
    client = serve()
    service = client.app.state.service
    fields = {"prompt": "Call me", "max_tokens": 60_000, "session": "moby", "stream": stream}
    parts = asyncio.run(
        hang_up(client.app, PATH, json.dumps(fields).encode(), behind=5 if stream else 0)
    )
    assert service.engine.load == (0, 0) and service.engine.batch.n_free == 4
    assert b"[DONE]" not in b"".join(parts)
    shown = "".join(chunk["choices"][0]["text"] for chunk in events(b"".join(parts).decode()))
    with streamlm.open(tmp_path / "sessions" / "moby.zarr", tiny, readonly=True) as saved:
        assert 5 < saved.position < 60_000 and shown in saved.text()
    assert "streamlm_hang_ups_total 1.0" in client.get("/metrics").text
    assert ask(client, max_tokens=3, session="moby")["session"]["position"] == saved.position + 3


def test_an_error_behind_the_first_event(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream cannot take its status back: the error is its last event."""
    batch = client.app.state.service.engine.batch
    real, steps = batch._step, []

    def fail(tokens: Any) -> Any:
        steps.append(1)
        if len(steps) == 5:
            raise MemoryError("no memory left")
        return real(tokens)

    monkeypatch.setattr(batch, "_step", fail)
    answer = client.post(PATH, json={"prompt": "Call me", "max_tokens": 20, "stream": True})
    *chunks, last = events(answer.text)
    assert answer.status_code == 200 and len(chunks) >= 1
    assert last["error"]["type"] == "server_error" and "memory left" not in json.dumps(last)


def test_nothing_crosses_between_keys(serve: Callable[..., TestClient], tmp_path: Path) -> None:
    """What one has said is neither read nor continued with the key of another."""
    client = serve(keys=Keys([(ADA, "ada"), (BOB, "bob")]))
    canary = "The secret word is Esmeralda-7319. "

    def with_key(key: str, **fields: Any) -> Any:
        return client.post(PATH, json=fields, headers={"Authorization": f"Bearer {key}"})

    ada = with_key(ADA, prompt=canary, session="diary", max_tokens=4, seed=1)
    bob = with_key(BOB, prompt="Hello. ", session="diary", max_tokens=4, seed=1, echo=True)
    assert ada.status_code == bob.status_code == 200
    again = with_key(BOB, session="diary", max_tokens=20, seed=2)
    alone = with_key(BOB, prompt="Hello. ", session="other", max_tokens=4, seed=1)
    assert alone.json()["choices"][0]["text"] in bob.json()["choices"][0]["text"]
    assert "Esmeralda" not in bob.text + again.text + alone.text
    folders = {path.parent.name: path for path in tmp_path.rglob("diary.zarr")}
    assert set(folders) == {"ada", "bob"}
    for name in ("../ada/diary", "ada/diary", "..", "/etc", "diary/../../ada/diary"):
        assert with_key(BOB, session=name).status_code == 400
