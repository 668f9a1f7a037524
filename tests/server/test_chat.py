"""POST /v1/chat/completions: whole conversations, and sessions that remember them."""

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import streamlm
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.engine import Engine
from streamlm.sessions.session import Session
from tests.support.asgi import events

PATH = "/v1/chat/completions"
SYSTEM = {"role": "system", "content": "Be a whale."}
TURN = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A whale."}]
WHY = {"role": "user", "content": "Why?"}


def ask(client: TestClient, *messages: Any, **fields: Any) -> dict[str, Any]:
    answer = client.post(PATH, json={"messages": list(messages), "max_tokens": 12, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def said(answer: dict[str, Any], index: int = 0) -> str:
    message = answer["choices"][index]["message"]
    assert message["role"] == "assistant"
    return message["content"]


def test_a_whole_conversation_is_read(talk: TestClient, chat: Checkpoint) -> None:
    answer = ask(talk, SYSTEM, *TURN, WHY, seed=1)
    ids = chat.chat.conversation_ids([SYSTEM, *TURN, WHY], generation_prompt=True)
    n_prompt = len(ids) - (ids[0] == chat.tokenizer.bos_id)
    assert answer["usage"]["prompt_tokens"] == n_prompt
    assert answer["object"] == "chat.completion" and "session" not in answer
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    with Engine(chat, rows=4) as engine:
        handle = engine.reply(
            Session(chat), "Why?", system="Be a whale.", history=TURN, max_tokens=12, seed=1
        )
        other = "".join(handle)
        assert handle.result().n_read == n_prompt
    # The defaults of the server are those of a reply.
    assert said(ask(talk, SYSTEM, *TURN, WHY, seed=1)) == said(answer)
    assert said(ask(talk, SYSTEM, *TURN, WHY, seed=1, temperature=0.8, top_p=0.95,
                    repetition_penalty=1.0)) == other  # fmt: skip


def test_several_replies_and_streams(talk: TestClient) -> None:
    answer = ask(talk, WHY, n=2, seed=5, temperature=1)
    assert said(answer, 0) != said(answer, 1)
    assert said(ask(talk, WHY, seed=6, temperature=1)) == said(answer, 1)
    fields = {"messages": [WHY], "max_tokens": 12, "n": 2, "seed": 5, "temperature": 1}
    usage_too = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = events(talk.post(PATH, json={**fields, **usage_too}).text)
    assert done == "[DONE]" and usage["usage"] == answer["usage"]
    for index in range(2):
        mine = [each for chunk in chunks for each in chunk["choices"] if each["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant" and "role" not in mine[1]["delta"]
        assert "".join(each["delta"].get("content", "") for each in mine) == said(answer, index)
        assert mine[-1]["finish_reason"] == answer["choices"][index]["finish_reason"]


def test_log_probabilities(talk: TestClient) -> None:
    plain, answer = ask(talk, WHY, seed=2), ask(talk, WHY, seed=2, logprobs=True, top_logprobs=2)
    tokens = answer["choices"][0]["logprobs"]["content"]
    assert said(plain) == said(answer) == "".join(token["token"] for token in tokens)
    for token in tokens:
        assert token["logprob"] <= 0 and len(token["top_logprobs"]) == 2
        assert bytes(token["bytes"]).decode() == token["token"]
    assert plain["choices"][0]["logprobs"] is None


def test_a_session_remembers(talk: TestClient, chat: Checkpoint, tmp_path: Path) -> None:
    """The newest message is read alone; the client may send the others all the same."""
    first = ask(talk, SYSTEM, TURN[0], session="whale", seed=1)
    reply = {"role": "assistant", "content": said(first)}
    second = ask(talk, SYSTEM, TURN[0], reply, WHY, session="whale")
    assert second["usage"]["prompt_tokens"] < first["usage"]["prompt_tokens"]
    path = tmp_path / "sessions" / "whale.zarr"
    with streamlm.open(path, chat, readonly=True) as saved:
        assert saved.position == second["session"]["position"]
        roles = [message["role"] for message in saved.transcript()]
        assert roles == ["system", "user", "assistant", "user", "assistant"]
    other = talk.post(PATH, json={"messages": [{"role": "system", "content": "Be a man."}, WHY],
                                  "session": "whale"})  # fmt: skip
    assert other.status_code == 400 and "another system prompt" in other.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"messages": []}, "messages"), ({"messages": "hello"}, "messages"), ({}, "messages"),
        ({"messages": [SYSTEM]}, "messages"), ({"messages": TURN}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}, WHY]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages[0].content"),
        ({"messages": [WHY], "tools": [{"type": "function"}]}, "tools"),
        ({"messages": [WHY], "response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [WHY], "top_logprobs": 2}, "top_logprobs"),
        ({"messages": [WHY], "n": 2, "session": "s"}, "n"),
        ({"messages": [WHY], "prompt": "x"}, "prompt"),
    ],
)  # fmt: skip
def test_bad_fields_are_named(talk: TestClient, fields: dict[str, Any], name: str) -> None:
    answer = talk.post(PATH, json=fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == name and "allowed: " in error["message"]


def test_what_clients_send_that_changes_nothing(talk: TestClient) -> None:
    parts = {
        "role": "user",
        "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}],
    }
    fields = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "seed": 3}
    found = ask(talk, {"role": "developer", "content": "Be a whale."}, parts, **fields, user="me")
    assert said(found) == said(ask(talk, SYSTEM, WHY, seed=3))


def test_a_model_without_a_template(client: TestClient) -> None:
    answer = client.post(PATH, json={"messages": [WHY]})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "no_chat_template"
