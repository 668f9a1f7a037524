"""Calls whose JSON is not what a page or a program would send: an error, and no traceback."""

import json
from typing import Any

import pytest

from tests.support.demo_server import DemoServer

httpx = pytest.importorskip("httpx", reason="needs gradio: pip install 'streamlm[demo]'")

GOOD: list[Any] = ["calls", "Once", 2, 0.8, 0.9, 1, "", 0]


def with_value(place: int, value: Any) -> list[Any]:
    return [*GOOD[:place], value, *GOOD[place + 1 :]]


def result(client: Any, data: Any, name: str = "generate_text") -> str:
    """What a call leads to, as text."""
    joined = client.post(f"gradio_api/call/{name}", json={"data": data})
    if joined.status_code != 200:
        assert joined.status_code in (400, 422)
        return str(joined.json()["detail"])
    with client.stream("GET", f"gradio_api/call/{name}/{joined.json()['event_id']}") as got:
        return str(got.read().decode())


@pytest.fixture
def client(server: DemoServer) -> Any:
    with httpx.Client(base_url=server.address, timeout=60) as client:
        yield client


def test_wrong_types_are_refused(server: DemoServer, client: Any) -> None:
    assert "event: complete" in result(client, GOOD)
    for place, value, message in (
        (2, "x", "max_tokens = 'x'; allowed: a whole number"),
        (2, 1.5, "max_tokens = '1.5'; allowed: a whole number"),
        (2, True, "max_tokens = 'True'; allowed: a whole number"),
        (2, 10**30, "allowed: a whole number"),
        (2, 1e30, "allowed: a whole number"),
        (2, -1, "max_tokens = -1; allowed: 0 to 1000"),
        (2, [1], "allowed: a whole number"),
        (3, None, "temperature = 'None'; allowed: a number"),
        (5, {}, "seed = '{}'; allowed: a whole number"),
        (0, ["a"], "session = "),
        (0, "<img src=x>", "&lt;img src=x&gt;"),
        (1, "x" * 100_001, "The prompt has 100,001 characters"),
    ):
        said = result(client, with_value(place, value))
        assert message in said and "event: complete" not in said, (place, value, said)
    for data in ([], GOOD[:3], [*GOOD, 1], "x", None, {}):
        assert "data" in result(client, data)
    for path, body in (
        ("call/generate_text", b'{"data": ["a", "b", NaN, 0.8, 0.9, 1, "", 0]}'),
        ("call/generate_text", b'{"data": ["a", "b", 1e999, 0.8, 0.9, 1, "", 0]}'),
        ("call/generate_text", b"[" * 100_000),
        ("call/generate_text", b"\xff"),
        ("call/generate_text", b"[]"),
        ("call/none", b'{"data": []}'),
        ("cancel", b"\xff\xfe"),
        ("cancel", b"[]"),
        ("reset", b"\xff\xfe"),
        ("run/generate_text", b'{"data": ["a", "b", 1, 0.8, 0.9, 1, "", 0]}'),
        ("run/predict", b'{"data": [1], "fn_index": 0, "session_hash": "a"}'),
        ("queue/join", b'{"data": [], "fn_index": 9999, "session_hash": "a"}'),
        ("queue/join", b'{"data": [], "fn_index": "1", "session_hash": "a"}'),
        ("queue/join", b'{"data": [], "fn_index": 1, "session_hash": {}}'),
        ("queue/join", b'{"data": [1], "fn_index": 1, "session_hash": "a"}'),
    ):
        answer = client.post(
            f"gradio_api/{path}", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code in (400, 422), (path, body[:60])
    for path in ("api/generate_text", "call/v2/generate_text", "proxy=x"):
        assert client.post(f"gradio_api/{path}", json={"data": GOOD}).status_code == 404
    assert "Traceback" not in server.log + server.errors


def test_events_of_the_page_take_their_own_types(server: DemoServer, client: Any) -> None:
    functions = client.get("config").json()["dependencies"]
    kinds = {each["id"]: each["type"] for each in client.get("config").json()["components"]}
    odd: list[Any] = [{"a": 1}, [1], True]
    for function in functions:
        inputs = [kinds[id] for id in function["inputs"]]
        if not inputs or not {*inputs} <= {"textbox", "dropdown", "slider", "radio"}:
            continue
        values = list(odd)
        values += [None] if {*inputs} & {"slider", "radio"} else []
        values += [10**30, -(2**70)] if "slider" in inputs and "dropdown" not in inputs else []
        values += [-(2**70)] if {*inputs} <= {"textbox", "dropdown"} else []  # a session's name
        for value in values:
            body = {
                "data": [value] * len(inputs),
                "fn_index": function["id"],
                "session_hash": "odd",
            }
            answer = client.post("gradio_api/queue/join", json=body)
            assert answer.status_code == 400, (function["api_name"], value)
    assert "Traceback" not in server.log + server.errors


def test_fields_without_a_text_are_empty(server: DemoServer, client: Any) -> None:
    config = client.get("config").json()
    components = {each["id"]: each for each in config["components"]}
    named = ("talk", "take", "rename_session", "point_at", "compare", "write", "read")
    functions = [each for each in config["dependencies"] if each["api_name"] in named]
    assert len(functions) >= len(named)
    for function in functions:
        inputs = [components[id] for id in function["inputs"]]
        with_value = ("slider", "number", "checkbox", "radio")
        data = [
            each["props"].get("value") if each["type"] in with_value else None for each in inputs
        ]
        body = {"data": data, "fn_index": function["id"], "session_hash": f"none{function['id']}"}
        joined = client.post("gradio_api/queue/join", json=body)
        assert joined.status_code in (200, 400), function["api_name"]
        if joined.status_code == 200:
            client.get("gradio_api/queue/data", params={"session_hash": body["session_hash"]})
    assert "Traceback" not in server.log + server.errors


def test_a_model_without_a_template_does_not_chat(client: Any) -> None:
    said = result(client, ["calls", "Who?", "", 5, 0.2, 0.9, 1, 0], "chat")
    assert "models that chat: smollm2" in said and "event: complete" not in said


@pytest.mark.parametrize("token", [10**30, -(2**70), 0.5])
def test_tokens_that_a_session_does_not_have(server: DemoServer, client: Any, token: float) -> None:
    assert "event: complete" in result(client, GOOD)
    for function in client.get("config").json()["dependencies"]:
        if function["api_name"] in ("rewind_session", "show_passage"):
            body = {"data": [GOOD[0], token], "fn_index": function["id"], "session_hash": "token"}
            assert client.post("gradio_api/queue/join", json=body).status_code == 200
            said = client.get("gradio_api/queue/data", params={"session_hash": "token"}).text
            assert '"success":true' in said
    assert "Traceback" not in server.log + server.errors


def test_a_result_that_is_not_there_is_not_shown(server: DemoServer, client: Any) -> None:
    config = client.get("config").json()
    named = {each["props"].get("elem_id"): each["id"] for each in config["components"]}
    (function,) = (each for each in config["dependencies"] if each["inputs"] == [named["result"]])
    for name in ("gone", "../../secret", "\0", None):
        body = {"data": [name], "fn_index": function["id"], "session_hash": "gone"}
        assert client.post("gradio_api/queue/join", json=body).status_code == 200
        said = client.get("gradio_api/queue/data", params={"session_hash": "gone"}).text
        assert '"success":true' in said and "data:" in said
    assert "Traceback" not in server.log + server.errors


def test_functions_of_the_browser_are_not_the_server_s(server: DemoServer, client: Any) -> None:
    functions = client.get("config").json()["dependencies"]
    in_browser = [each["id"] for each in functions if not each["backend_fn"]]
    assert in_browser
    for number in in_browser:
        body = json.dumps({"data": [], "fn_index": number, "session_hash": "a"})
        answer = client.post("gradio_api/queue/join", content=body)
        assert answer.status_code == 400 and "of the server" in answer.text
    assert "Traceback" not in server.log + server.errors


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_other_pages_are_refused(client: Any, headers: dict[str, str]) -> None:
    for method, path in (
        ("GET", ""),
        ("GET", "config"),
        ("POST", "gradio_api/call/list_sessions"),
        ("POST", "gradio_api/upload"),
        ("POST", "gradio_api/mcp/"),
        ("OPTIONS", "gradio_api/queue/join"),
    ):
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == 403, (method, path)
        assert "access-control-allow-origin" not in answer.headers


def test_pages_cannot_be_framed_or_read_by_others(server: DemoServer, client: Any) -> None:
    page = client.get("", headers={"Origin": server.address.rstrip("/")})
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-frame-options"] == "DENY"
    assert "access-control-allow-origin" not in page.headers
    assert "SameSite=Lax" in page.headers["set-cookie"]
