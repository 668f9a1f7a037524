"""POST /v1/responses: conversations are sessions, and an old response can be answered again."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.testclient import TestClient

from apps.server.keys import Keys
from streamlm.checkpoints.checkpoint import Checkpoint

PATH = "/v1/responses"
ADA, BOB = "ada-has-this-long-key", "bob-has-another-long-key"


def ask(client: TestClient, text: Any, **fields: Any) -> dict[str, Any]:
    answer = client.post(PATH, json={"input": text, "max_output_tokens": 8, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def said(response: dict[str, Any]) -> str:
    (item,) = response["output"]
    (part,) = item["content"]
    return part["text"]


def test_answering_the_newest_goes_on_and_an_older_one_forks(talk: TestClient) -> None:
    first = ask(talk, "Who are you?", instructions="Be a whale.", seed=1)
    name = first["session"]["name"]
    assert name.startswith("response-") and first["object"] == "response"
    second = ask(talk, "Why?", previous_response_id=first["id"], seed=2)
    assert second["session"]["name"] == name
    assert second["session"]["position"] > first["session"]["position"]
    assert second["usage"]["input_tokens"] < first["usage"]["input_tokens"]
    again = ask(talk, "Why?", previous_response_id=first["id"], seed=2)
    assert again["session"]["name"].startswith(f"{name}@response-")
    assert said(again) == said(second)
    assert again["session"]["position"] == second["session"]["position"]
    other = ask(talk, "How?", previous_response_id=first["id"], seed=2, temperature=1)
    assert other["session"]["name"] not in (name, again["session"]["name"])
    third = ask(talk, "And?", previous_response_id=again["id"], seed=3)
    assert third["session"]["name"] == again["session"]["name"]
    assert third["previous_response_id"] == again["id"]


def test_two_answers_at_once(talk: TestClient) -> None:
    """The first goes on with the session, the other one forks, and both are the same."""
    first = ask(talk, "Who are you?", seed=1)
    with ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(ask, talk, "Why?", previous_response_id=first["id"], seed=2)
            for _ in range(3)
        ]
        found = [each.result() for each in asked]
    names = {each["session"]["name"] for each in found}
    assert len(names) == 3 and first["session"]["name"] in names
    assert len({said(each) for each in found}) == 1


def test_a_response_is_there_after_a_restart(
    serve: Callable[..., TestClient], chat: Checkpoint
) -> None:
    client = serve(chat)
    first = ask(client, "Who are you?", seed=1, conversation="whale")
    assert first["conversation"] == {"id": "whale"} and first["session"]["name"] == "whale"
    second = ask(client, "Why?", conversation={"id": "whale"}, seed=2)
    client.app.state.service.close()
    client = serve(chat)
    again = ask(client, "Why?", previous_response_id=first["id"], seed=2)
    assert said(again) == said(second) and again["session"]["name"] != "whale"
    rewound = client.post("/sessions/whale/rewind", json={"to": 3})
    assert rewound.status_code == 200
    assert said(ask(client, "Why?", previous_response_id=first["id"], seed=2)) == said(second)
    assert client.delete("/sessions/whale").status_code == 200
    gone = client.post(PATH, json={"input": "Why?", "previous_response_id": first["id"]})
    assert gone.status_code == 404 and "no response" in gone.json()["error"]["message"]


def test_streams(talk: TestClient) -> None:
    whole = ask(talk, "Who are you?", seed=1, max_output_tokens=20)
    fields = {"input": "Who are you?", "seed": 1, "max_output_tokens": 20, "stream": True}
    blocks = talk.post(PATH, json=fields).text.strip().split("\n\n")
    found = []
    for block in blocks:
        name, data = block.splitlines()
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    kinds = [each["type"] for each in found]
    assert kinds[:4] == [
        "response.created", "response.in_progress",
        "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    deltas = [each["delta"] for each in found if each["type"] == "response.output_text.delta"]
    assert "".join(deltas) == said(whole) and len(deltas) > 3
    assert kinds[-1] == f"response.{whole['status']}"
    last = found[-1]["response"]
    assert last["id"] == found[0]["response"]["id"] and last["usage"] == whole["usage"]
    assert [each["sequence_number"] for each in found] == list(range(len(found)))
    goes_on = ask(talk, "Why?", previous_response_id=last["id"])
    assert goes_on["session"]["name"] == last["session"]["name"]


def test_without_a_store(talk: TestClient) -> None:
    messages = [
        {"role": "user", "content": [{"type": "input_text", "text": "Who are you?"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "A whale."}]},
        {"type": "message", "role": "user", "content": "Why?"},
    ]
    found = ask(talk, messages, store=False, seed=3)
    assert found["session"] is None and talk.get("/sessions").json() == {"sessions": []}
    chat = {"messages": [*messages[:2], {"role": "user", "content": "Why?"}], "seed": 3}
    same = talk.post("/v1/chat/completions", json={**chat, "max_tokens": 8}).json()
    assert same["choices"][0]["message"]["content"] == said(found)
    gone = talk.post(PATH, json={"input": "Why?", "previous_response_id": found["id"]})
    assert gone.status_code == 404


def test_bad_requests(talk: TestClient, client: TestClient) -> None:
    first = ask(talk, "Who are you?", instructions="Be a whale.")
    for fields, name in (
        ({}, "input"),
        ({"input": [{"type": "function_call_output"}]}, "input"),
        ({"input": "x", "conversation": 5}, "conversation"),
        ({"input": "x", "conversation": "a", "previous_response_id": first["id"]},
         "previous_response_id"),
        ({"input": [{"role": "user", "content": "x"}] * 2, "conversation": "a"}, "input"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools"),
        ({"input": "x", "max_tokens": 5}, "max_tokens"),
        ({"input": [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}],
          "instructions": "y"}, "instructions"),
    ):  # fmt: skip
        answer = talk.post(PATH, json=fields)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == name, fields
    changed = {"input": "x", "previous_response_id": first["id"], "instructions": "Be a man."}
    assert "another system prompt" in talk.post(PATH, json=changed).text
    for wrong in ("resp_x", "resp_" + "a" * 30, "resp_Li4vLi4.000000000000000000000000", ""):
        answer = talk.post(PATH, json={"input": "x", "previous_response_id": wrong})
        assert answer.status_code == 404, wrong
    assert client.post(PATH, json={"input": "x"}).json()["error"]["code"] == "no_chat_template"


def test_nothing_crosses_between_keys(serve: Callable[..., TestClient], chat: Checkpoint) -> None:
    client = serve(chat, keys=Keys([(ADA, "ada"), (BOB, "bob")]))
    headers = [{"Authorization": f"Bearer {key}"} for key in (ADA, BOB)]
    fields = {"input": "The word is Esmeralda-7319.", "max_output_tokens": 4, "conversation": "c"}
    ada = client.post(PATH, json=fields, headers=headers[0]).json()
    answer = {**fields, "conversation": None, "previous_response_id": ada["id"]}
    assert client.post(PATH, json=answer, headers=headers[1]).status_code == 404
    assert client.post(PATH, json=answer, headers=headers[0]).status_code == 200
