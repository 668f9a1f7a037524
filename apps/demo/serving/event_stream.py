"""The stream in which a page hears what became of its requests: it stays open between them.

Gradio's server ends it with the last request's news. A request that is made at that very moment
finds it still open, so the page opens no other, and waits for its news for ever.
"""

import asyncio
import time
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

import gradio as gr

QUIET = 20.0  # seconds without news after which a stream ends
OFTEN = 0.02  # seconds between two looks whether there are any
END = b'"close_stream"'


class LastingNews:
    """Lets a browser's stream of news go on where Gradio ends it, until it was quiet for a while.

    Programs get theirs as Gradio makes it: they open one for each request, and wait for its end.

    Args:
        app: serves everything.
        page: whose requests the news are of.
    """

    def __init__(self, app: Any, page: gr.Blocks) -> None:
        self.app, self._page = app, page

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/queue/data"):
            await self.app(scope, receive, send)
            return
        agent = dict(scope["headers"]).get(b"user-agent", b"")
        who = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash")
        if b"Mozilla" not in agent or not who:
            await self.app(scope, receive, send)
            return
        begun, end = False, None

        async def forward(message: Any) -> None:
            nonlocal begun, end
            if message["type"] == "http.response.start":
                if not begun:
                    begun = True
                    await send(message)
            elif END in message.get("body", b""):
                end = message
            elif end is None:
                await send(message)

        while True:
            await self.app(dict(scope), receive, forward)
            if end is None:
                return
            if not await self._more(who[0], receive):
                await send(end)
                await send({"type": "http.response.body", "body": b""})
                return
            end = None

    async def _more(self, who: str, receive: Any) -> bool:
        """Wait until a page has made another request; False if it makes none, or is gone."""
        gone, until = asyncio.ensure_future(receive()), time.monotonic() + QUIET
        try:
            while not gone.done() and time.monotonic() < until:
                queue = self._page._queue
                if queue.stopped:
                    break
                if queue.pending_event_ids_session.get(who):
                    return True
                await asyncio.sleep(OFTEN)
            return False
        finally:
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone
