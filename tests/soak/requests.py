"""Requests to the demo that nobody should send: each is answered, and none reaches a traceback."""

import json
import random
import time
from pathlib import Path
from typing import Any

from tests.soak.commands import LIMIT, Tally
from tests.soak.documents import DOCUMENTS
from tests.support.demo_server import DemoServer

SECRET = "a secret that no request may read"
NAMES = (
    "s",
    "t@b",
    "../x",
    "a/b",
    "",
    "x" * 300,
    "é",
    "<img src=x>",
    "a\0b",
    "s@main@x",
    ".s",
    "CON",
)
ODD: list[Any] = [
    *(None, True, [], {}, [[]], {"a": 1}, "", "x", "NaN", -1, 0, 1.5, 10**30, 1e300, -(2**70)),
    *(
        "\0",
        "\ud7ff\ue000",
        "<b>x</b>",
        "a" * 5000,
        "😀" * 300,
        "\n" * 500,
        {"path": "/etc/passwd"},
    ),
]
GOOD: dict[str, list[Any]] = {
    "list_sessions": [],
    "read_text": ["s", "Call me Ishmael. "],
    "generate_text": ["s", "Once", 2, 0.8, 0.9, 1, "", 0],
    "chat": ["s", "Who?", "", 2, 0.2, 0.9, 1, 0],
    "score_text": ["s", "Call me Ishmael."],
    "recall": ["s", "Who?", 1],
    "inspect_memory": ["s"],
    "rewind": ["s", 1],
    "fork": ["s", "b"],
}
PATHS = (
    *(
        "config",
        "gradio_api/info",
        "gradio_api/startup-events",
        "theme.css",
        "favicon.ico",
        "login",
    ),
    *("gradio_api/queue/join", "gradio_api/queue/data", "gradio_api/upload", "gradio_api/cancel"),
    *("gradio_api/run/predict", "gradio_api/api/predict", "gradio_api/reset", "gradio_api/mcp/"),
    *("gradio_api/proxy=http://127.0.0.1/", "gradio_api/component_server", "gradio_api/heartbeat"),
    *("gradio_api/file=", "gradio_api/call/none", "gradio_api/stream/x/y/z/playlist.m3u8", "%00"),
    *("gradio_api/custom_component/1/client/component/index.js", "static/../config", "assets/x"),
)
FOREIGN: list[dict[str, str]] = [
    {"Host": "evil.example"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
]


def requests(folder: Path, model: Path, count: int, seed: int) -> Tally:
    """Send `count` requests to a demo; it still works at the end, without a traceback."""
    import httpx

    tally, chance = Tally(), random.Random(seed)
    (folder / "secret.txt").write_text(SECRET)
    with (
        DemoServer(folder / "sessions", model, "--mcp") as server,
        httpx.Client(base_url=server.address, timeout=LIMIT) as client,
    ):
        visit = _Visit(client, chance, folder)
        kinds = [visit.call] * 4 + [visit.event] * 2 + [visit.junk] * 2
        kinds += [visit.file, visit.foreign, visit.upload, visit.path]
        seen = 0
        for number in range(count):
            kind = chance.choice(kinds)
            what, began = f"request {number}: {kind.__name__}", time.monotonic()
            try:
                said, status, text = kind()
            except httpx.HTTPError as error:
                tally.faults.append(f"{what}: {error!r} after {time.monotonic() - began:.0f} s")
                continue
            tally.counts[f"{status}"] += 1
            tally.check(status not in (500, 502), f"{what}: {said}: {status} {text[:200]}")
            tally.check(SECRET not in text, f"{what}: {said} tells the secret")
            log = server.errors + server.log
            tally.check("Traceback" not in log[seen:], f"{what}: {said}: {log[seen:][:1500]}")
            seen = len(log)
        status, text = visit.result("read_text", ["last", "It still reads. "])
        tally.check(status == 200 and "complete" in text, f"at the end: {status} {text[:300]}")
    return tally


class _Visit:
    """One visitor, who sends a random request of each kind: says which, its status and text."""

    def __init__(self, client: Any, chance: random.Random, folder: Path) -> None:
        self._client, self._chance, self._folder = client, chance, folder
        config = client.get("config").json()
        self._functions = config["dependencies"]
        self._components = {each["id"]: each["type"] for each in config["components"]}

    def result(self, name: str, data: Any) -> tuple[int, str]:
        """The status of a call, and what it leads to."""
        body = json.dumps({"data": data})
        joined = self._client.post(f"gradio_api/call/{name}", content=body, headers=JSON)
        if joined.status_code != 200:
            return joined.status_code, joined.text
        id = joined.json()["event_id"]
        return joined.status_code, self._client.get(f"gradio_api/call/{name}/{id}").text

    def call(self) -> tuple[str, int, str]:
        name = self._chance.choice([*GOOD])
        data = [*GOOD[name]]
        for _ in range(self._chance.choice((0, 1, 1, 2))):
            if data:
                odd = self._chance.choice([*ODD, *NAMES])
                data[self._chance.randrange(len(data))] = odd
        if self._chance.random() < 0.1:
            data = data[: self._chance.randrange(len(data) + 1)]
        return f"{name} {str(data)[:200]}", *self.result(name, data)

    def event(self) -> tuple[str, int, str]:
        function = self._chance.choice(self._functions)
        data = [
            self._chance.choice(ODD) if self._chance.random() < 0.7 else None
            for _ in function["inputs"]
        ]
        return self._event(function, data)

    def _event(self, function: Any, data: list[Any]) -> tuple[str, int, str]:
        session = f"soak{self._chance.randrange(10**9)}"
        body = {"data": data, "fn_index": function["id"], "session_hash": session}
        what = f"event {function['api_name']} {str(data)[:200]}"
        joined = self._client.post("gradio_api/queue/join", content=json.dumps(body), headers=JSON)
        if joined.status_code != 200:
            return what, joined.status_code, joined.text
        answer = self._client.get("gradio_api/queue/data", params={"session_hash": session})
        return what, answer.status_code, answer.text

    def upload(self) -> tuple[str, int, str]:
        """A document is uploaded and read: the page says what became of it."""
        kind = self._chance.choice([*DOCUMENTS])
        name, data = DOCUMENTS[kind](self._chance)
        sent = self._client.post("gradio_api/upload", files={"files": (name, data)})
        if sent.status_code != 200:
            return kind, sent.status_code, sent.text
        (read,) = (each for each in self._functions if each["api_name"] == "read")
        (path,) = sent.json()
        file = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
        # The first input is the server's own, and a page sends nothing in its place.
        _, status, text = self._event(read, [None, "s", "A file", "", file])
        # The last word of the page is a message, and not that it is opening.
        ended = "Read " in text or 'class=\\"message error' in text or "anything" in text
        return f"upload of {kind}", status if ended else 500, text

    def junk(self) -> tuple[str, int, str]:
        body = self._chance.choice(
            [
                *(b"", b"[]", b"{", b"null", b"[" * 5000, b"\xff\xfe", b'{"data": NaN}', b"a=b&c"),
                *(self._chance.randbytes(500), json.dumps(ODD[3:]).encode()),
            ]
        )
        path = self._chance.choice(PATHS)
        kind = self._chance.choice(("application/json", "text/plain", "multipart/form-data", ""))
        answer = self._client.post(path, content=body, headers={"Content-Type": kind})
        return f"POST {path} {kind} {body[:60]!r}", answer.status_code, answer.text

    def file(self) -> tuple[str, int, str]:
        path = str(self._chance.choice((self._folder / "secret.txt", "/etc/passwd", "/dev/zero")))
        spelled = self._chance.choice(
            (path, path.replace("/", "%2F"), f"../../..{path}", f"file:{path}", f"{path}%00")
        )
        answer = self._client.get(f"gradio_api/file={spelled}")
        return f"file {spelled}", answer.status_code, answer.text

    def foreign(self) -> tuple[str, int, str]:
        headers, path = self._chance.choice(FOREIGN), self._chance.choice(PATHS)
        method = self._chance.choice(("GET", "POST", "OPTIONS"))
        answer = self._client.request(method, path, headers=headers)
        refused = answer.status_code in (403, 400)
        return f"{method} {path} {headers}", 403 if refused else 500, answer.text

    def path(self) -> tuple[str, int, str]:
        method = self._chance.choice(("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"))
        path = self._chance.choice(PATHS)
        if "queue/data" in path or "heartbeat" in path or "mcp" in path:
            path = "config"  # those are streams, which do not end
        answer = self._client.request(method, path)
        return f"{method} {path}", answer.status_code, answer.text


JSON = {"Content-Type": "application/json"}
