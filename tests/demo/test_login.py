"""Logins: who is let in, with which cookie, and how often one may try."""

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'streamlm[demo]'")

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from apps.demo.serving.login import COOKIE, USER, BackOff, Login

USERS = [("ada", "one"), ("bob", "two, ü")]
HTML = {"Accept": "text/html"}


async def inside(scope: object, receive: object, send: object) -> None:
    request = Request(scope)  # type: ignore[arg-type]
    await PlainTextResponse(f"inside: {request.scope[USER]}")(scope, receive, send)  # type: ignore[arg-type]


def client() -> TestClient:
    return TestClient(Login(inside, users=USERS), base_url="http://localhost")


def test_a_login() -> None:
    browser = client()
    assert browser.get("/config").json() == {"error": "Log in first."}
    page = browser.get("/?session=a", headers=HTML)
    assert page.status_code == 401 and 'action="login?session=a"' in page.text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    bob = {"username": "bob", "password": "two, ü"}
    answer = browser.post("/login?session=a", data=bob, headers=HTML, follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"] == "./?session=a"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie
    assert browser.get("/").text == "inside: bob"
    token = browser.cookies[COOKIE]
    browser.get("/logout")
    assert client().get("/", headers={"Cookie": f"{COOKIE}={token}"}).status_code == 401


def test_what_is_no_login() -> None:
    for fields in (
        {"username": "ada", "password": "two"},
        {"username": "ada", "password": ""},
        {"username": "eve", "password": "one"},
        {"username": "", "password": ""},
        {"x": "y" * 9000},
        {},
    ):
        answer = client().post("/login", data=fields)
        assert answer.status_code == 401 and "incorrect" in answer.text, fields
        assert "set-cookie" not in answer.headers
    assert client().get("/", headers={"Cookie": f"{COOKIE}=x"}).status_code == 401
    assert client().post("/login", content=b"\xff%&=;" * 100).status_code == 401


def test_markup_is_escaped() -> None:
    page = client().get('/?"><script>alert(1)</script>', headers=HTML).text
    assert "<script>" not in page


def test_tries_are_limited() -> None:
    browser = client()
    wrong = {"username": "ada", "password": "no"}
    statuses = [browser.post("/login", data=wrong).status_code for _ in range(7)]
    assert statuses == [401] * 5 + [429] * 2
    right = browser.post("/login", data={"username": "ada", "password": "one"})
    assert right.status_code == 429 and int(right.headers["retry-after"]) >= 1
    assert "set-cookie" not in right.headers


def test_each_failure_waits_longer() -> None:
    tries = BackOff(free=3, most=60.0)
    waits = []
    for _ in range(12):
        tries.fail("a", now=100.0)
        waits.append(tries.wait("a", now=100.0))
    assert waits == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert tries.wait("a", now=161.0) == 0 and tries.wait("b", now=100.0) == 0
    tries.forget("a")
    assert tries.wait("a", now=100.0) == 0
