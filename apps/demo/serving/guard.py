"""Guard: ASGI middleware that answers this server's own pages, and programs, only."""

from typing import Any

from starlette.responses import PlainTextResponse

from apps.hosts import Hosts

# Parts of Gradio that the demo does not use: they fetch other URLs, keep states of a page for
# others to open, belong to development, or are other ways to what is called elsewhere.
CLOSED = (
    *("/proxy=", "/deep_link", "/dev/", "/vibe", "/undo-vibe", "/process_recording", "/stream/"),
    *("/api/", "/call/v2/", "/monitoring", "/run-history", "/runs", "/component_server"),
    *("/profiling", "/file=http"),
)


class Guard:
    """Refuses requests to another host, those of other servers' pages, and what is not used."""

    def __init__(self, app: Any, *, hosts: Hosts) -> None:
        self.app, self._hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        refusal = self._hosts.refusal(headers, method=scope["method"])
        if refusal is not None:
            await PlainTextResponse(f"{refusal}\n", 403)(scope, receive, send)
            return
        path = scope["path"].removeprefix("/gradio_api")
        if path.startswith(CLOSED):
            await PlainTextResponse("not here\n", 404)(scope, receive, send)
            return
        await self.app(scope, receive, send)
