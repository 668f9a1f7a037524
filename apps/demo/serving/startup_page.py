"""The startup page: answers until the demo is there.

Browsers get a page that reloads into the demo by itself, and programs get a 503 with Retry-After.
"""

import asyncio
from pathlib import Path
from typing import Any

from starlette.responses import HTMLResponse, JSONResponse, Response

PAGE = Path(__file__).parent / "startup_page.html"
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'"
)
RETRY_AFTER = 2  # seconds after which a program should try again
MAX_BODY = 1 << 20  # bytes of a request to read, without which its sender misses the response


class StartupPage:
    """ASGI application: says that the demo is starting, until another one replaces it."""

    def __init__(self) -> None:
        self._page = PAGE.read_text(encoding="utf-8")
        self._app: Any = None
        self._replaced = asyncio.Event()

    def replace(self, app: Any) -> None:
        """Serve another application from now on; call it in the server's thread."""
        self._app = app
        self._replaced.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is not None:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        await _read(receive)
        response: Response
        if b"x-wait" in headers:  # sent by the page
            await self._replaced.wait()
            response = Response(status_code=204)
        elif b"text/html" in headers.get(b"accept", b""):
            response = HTMLResponse(self._page, 503)
        else:
            response = JSONResponse({"error": "The demo is starting."}, 503)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Cache-Control"] = "no-store"
        response.headers["Retry-After"] = str(RETRY_AFTER)
        await response(scope, receive, send)


async def _read(receive: Any) -> None:
    """Read the body of a request, or as much of it as matters."""
    length = 0
    while length < MAX_BODY:
        message = await receive()
        length += len(message.get("body", b""))
        if not message.get("more_body"):
            return
