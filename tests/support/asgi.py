"""Requests to an ASGI application whose client hangs up in the middle."""

import asyncio
import json
from typing import Any


async def hang_up(
    app: Any, path: str, body: bytes, *, behind: int = 0, accept: str = "*/*"
) -> list[bytes]:
    """Send a body, and hang up once so many parts of the answer have come.

    Returns:
        The parts that were sent, those behind the hang-up included.
    """
    parts: list[bytes] = []
    gone = asyncio.Event()
    messages = [{"type": "http.request", "body": body}]
    if not behind:
        asyncio.get_running_loop().call_later(0.2, gone.set)

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            parts.append(message["body"])
            if behind and len(parts) >= behind:
                gone.set()

    headers = [(b"host", b"127.0.0.1"), (b"accept", accept.encode())]
    scope = {
        **{"type": "http", "method": "POST", "path": path, "raw_path": path.encode()},
        **{"headers": headers, "query_string": b"", "root_path": ""},
        **{"scheme": "http", "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 1)},
        **{"http_version": "1.1", "asgi": {"version": "3.0", "spec_version": "2.3"}},
        **{"app": app, "state": {}},
    }
    await app(scope, receive, send)
    return parts


def events(text: str) -> list[Any]:
    """The values of server-sent events; "[DONE]" as it stands."""
    found = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [each if each == "[DONE]" else json.loads(each) for each in found]
