"""The web server: the page with its theme, cookies and content security policy."""

import secrets
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from gradio import http_server
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware

from apps.demo.app_state import COOKIE, AppState
from apps.demo.page import build
from apps.demo.serving.event_stream import PersistentStream
from apps.demo.serving.startup_page import StartupServer
from apps.demo.uploads import MAX_SESSION

HERE = Path(__file__).parent
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "monospace")
LOAD_AFTER = 15.0  # seconds after which the model is loaded even if no page was opened
# The page may load resources from its own server only.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'"
)


def serve(
    app: AppState,
    startup: StartupServer,
    *,
    root_path: str | None = None,
    auth: Sequence[tuple[str, str]] = (),
    mcp: bool = False,
) -> gr.Blocks:
    """Serve in background threads, in place of `startup`; the caller closes the returned page.

    Args:
        root_path: the path under which a proxy serves the page.
        auth: names and passwords; empty for no login.
        mcp: also serve the API as tools, at /gradio_api/mcp.
    """
    page = build(app)
    theme = gr.themes.Default(
        primary_hue="indigo", neutral_hue="slate", font=FONTS, font_mono=MONO, radius_size="sm"
    ).set(  # the theme's own are too pale on white
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        input_placeholder_color="*neutral_500",
    )
    with _takeover(startup):
        page.launch(
            root_path=root_path,
            auth=list(auth) or None,
            mcp_server=mcp,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            show_error=True,
            ssr_mode=False,
            pwa=False,
            favicon_path=str(HERE / "icon.svg"),
            run_history=False,
            enable_monitoring=False,
            max_file_size=MAX_SESSION,
            footer_links=["api", "settings"],
            theme=theme,
            css=(HERE / "page.css").read_text(encoding="utf-8"),
            head=f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
            app_kwargs={
                "middleware": [Middleware(Security), Middleware(PersistentStream, page=page)]
            },
        )
    # The first page triggers loading the model; API clients should not wait for a page.
    timer = threading.Timer(LOAD_AFTER, app.warm_up)
    timer.daemon = True
    timer.start()
    return page


@contextmanager
def _takeover(startup: StartupServer) -> Iterator[None]:
    """Within this context, Gradio launches on the startup server's socket, not on its own."""

    def start(app: Any, **_: Any) -> tuple[str, int, str, http_server.Server]:
        server = _Server(uvicorn.Config(app, log_level="warning"), startup.hand_over())
        server.run_in_thread()
        return startup.host, startup.port, startup.address, server

    original, http_server.start_server = http_server.start_server, start
    try:
        yield
    finally:
        http_server.start_server = original


class _Server(http_server.Server):
    def __init__(self, config: uvicorn.Config, listening: socket.socket) -> None:
        super().__init__(config)
        self._listening = listening

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        super().run(sockets or [self._listening])


class Security:
    """ASGI middleware: gives each browser its cookie, and each page its security headers."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        cookies = dict(scope["headers"]).get(b"cookie", b"").decode("latin-1")
        has_cookie = COOKIE in SimpleCookie(cookies)

        async def respond(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers["Content-Security-Policy"] = POLICY
                    headers["Referrer-Policy"] = "same-origin"
                    headers["X-Content-Type-Options"] = "nosniff"
                    if not has_cookie:
                        headers.append(
                            "Set-Cookie",
                            f"{COOKIE}={secrets.token_hex(16)}; Path=/; HttpOnly; SameSite=Lax; "
                            "Max-Age=31536000",
                        )
            await send(message)

        await self.app(scope, receive, respond)
