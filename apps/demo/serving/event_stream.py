"""A persistent event stream: a page's stream of results stays open between its requests.

Gradio's server closes the stream after the last pending request. A page that sends a request at
that very moment still sees an open stream, opens no new one, and waits for its result forever.
"""

import asyncio
import time
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

import gradio as gr

# Seconds without requests after which a stream closes. A browser opens six connections to a host,
# for all its tabs: with idle streams of three tabs, the requests of the third had to wait.
IDLE = 2.0
POLL = 0.02  # seconds between two checks for requests
CLOSE = b'"close_stream"'


class PersistentStream:
    """ASGI middleware: keeps a browser's event stream open until it is idle for a while.

    Programs get Gradio's own behaviour: they open a stream per request and wait for it to close.

    Args:
        app: the ASGI application.
        page: the Gradio application, whose queue holds the pending requests.
    """

    def __init__(self, app: Any, page: gr.Blocks) -> None:
        self.app, self._page = app, page

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/queue/data"):
            await self.app(scope, receive, send)
            return
        agent = dict(scope["headers"]).get(b"user-agent", b"")
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash")
        if b"Mozilla" not in agent or not session:
            await self.app(scope, receive, send)
            return
        started, end = False, None

        async def forward(message: Any) -> None:
            nonlocal started, end
            if message["type"] == "http.response.start":
                if not started:
                    started = True
                    await send(message)
            elif CLOSE in message.get("body", b""):
                end = message
            elif end is None:
                await send(message)

        while True:
            await self.app(dict(scope), receive, forward)
            if end is None:
                return
            if not await self._has_request(session[0], receive):
                await send(end)
                await send({"type": "http.response.body", "body": b""})
                return
            end = None

    async def _has_request(self, session: str, receive: Any) -> bool:
        """Wait for another request of the page; False if it is idle or disconnected."""
        disconnected, deadline = asyncio.ensure_future(receive()), time.monotonic() + IDLE
        try:
            while not disconnected.done() and time.monotonic() < deadline:
                queue = self._page._queue
                if queue.stopped:
                    break
                if queue.pending_event_ids_session.get(session):
                    return True
                await asyncio.sleep(POLL)
            return False
        finally:
            disconnected.cancel()
            with suppress(asyncio.CancelledError):
                await disconnected
