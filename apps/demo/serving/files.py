"""Files that pass through: uploads have a total, and an export is its owner's alone."""

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import gradio as gr
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse

from apps.demo.app_state import COOKIE, AppState
from apps.demo.room import TOTAL, make_room
from apps.demo.serving.cookies import cookie
from apps.demo.serving.login import USER
from apps.demo.uploads import MAX_SESSION

OVERHEAD = 1 << 16  # bytes of an upload beside its files


class Files:
    """ASGI middleware: refuses uploads without room, and exports to others than their owner."""

    def __init__(self, app: Any, *, state: AppState, total: int = TOTAL) -> None:
        self.app, self._state, self._total = app, state, total
        self._coming = 0  # bytes of the uploads that are under way

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["path"].endswith(("/upload", "/upload/")) and scope["method"] == "POST":
            await self._upload(scope, receive, send)
        elif (owner := self._owner(scope["path"])) and not self._owns(scope, owner):
            await PlainTextResponse("this file is another visitor's\n", 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _upload(self, scope: Any, receive: Any, send: Any) -> None:
        given = dict(scope["headers"]).get(b"content-length", b"").decode("latin-1")
        refusal, status, length = "", 0, int(given) if re.fullmatch(r"\d{1,18}", given) else None
        if length is None:
            refusal, status = "an upload without Content-Length", 411
        elif length > MAX_SESSION + OVERHEAD:
            refusal = f"an upload of {length:,} bytes; allowed: at most {MAX_SESSION:,}"
            status = 413
        else:
            self._coming += length
            try:
                room = self._total - self._coming
                if await run_in_threadpool(make_room, Path(self._state.files), room):
                    await self.app(scope, receive, send)
                    return
            finally:
                self._coming -= length
            refusal, status = "there is no room for uploads now; try again in some minutes", 507
        await PlainTextResponse(f"{refusal}\n", status)(scope, receive, send)

    def _owner(self, path: str) -> str | None:
        """Whose export a path leads to; None if it leads to none."""
        _, equals, given = unquote(path).partition("file=")
        if not equals or "\0" in given:
            return None
        exports = os.path.join(os.path.realpath(self._state.files), "exports") + os.sep
        real = os.path.realpath(given)
        return real.removeprefix(exports).split(os.sep)[0] if real.startswith(exports) else None

    def _owns(self, scope: Any, owner: str) -> bool:
        """Whether an export's owner sent a request."""
        cookies = {COOKIE: cookie(scope, COOKIE)}
        request: Any = SimpleNamespace(username=scope.get(USER), cookies=cookies)
        try:
            return self._state.shelf(request).owner == owner
        except gr.Error:
            return False
