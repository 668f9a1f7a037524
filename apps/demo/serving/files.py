"""Files that pass through: uploads have a total, and an export is its owner's alone."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import gradio as gr
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse

from apps.demo.app_state import COOKIE, AppState
from apps.demo.serving.cookies import cookie
from apps.demo.serving.login import USER
from apps.demo.uploads import MAX_SESSION

TOTAL = 1000 * 1000 * 1000  # bytes of uploads and exports that are kept for a while
IN_USE = 300.0  # seconds in which a file is not removed to make room
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


def make_room(folder: Path, most: int, *, now: float | None = None) -> bool:
    """Remove the oldest files until those in a folder take at most `most` bytes.

    Returns:
        whether they do; files that may be in use are not removed.
    """
    now = time.time() if now is None else now
    found = sorted(_files(folder))
    total = sum(size for _, size, _ in found)
    for modified, size, path in found:
        if total <= most or modified > now - IN_USE:
            break
        try:
            os.unlink(path)
        except OSError:
            continue
        total -= size
    return total <= most


def _files(folder: Path) -> Iterator[tuple[float, int, str]]:
    """The time, the size and the path of each file in a folder and its folders."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            try:
                status = os.stat(path)
            except OSError:  # removed meanwhile
                continue
            yield status.st_mtime, status.st_size, path
