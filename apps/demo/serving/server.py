"""Serving the demo: on this computer unless told otherwise, and with nothing from the network."""

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

from apps.demo.app_state import VISITOR, Desk
from apps.demo.page import build
from apps.demo.serving.event_stream import LastingNews
from apps.demo.serving.startup_page import Starting
from apps.demo.uploads import MAX_SESSION

HERE = Path(__file__).parent
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "monospace")
UNASKED = 15.0  # seconds after which the model is loaded, if no page was opened
# What the page may ask for: its own server, and nothing else.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'"
)


def serve(
    desk: Desk,
    starting: Starting,
    *,
    root_path: str | None = None,
    auth: Sequence[tuple[str, str]] = (),
    mcp: bool = False,
) -> gr.Blocks:
    """Serve in threads of their own, in place of `starting`; gives the page, to be closed.

    Args:
        root_path: the path that a proxy serves it under.
        auth: names and passwords; without, nobody has to log in.
        mcp: also serve its functions as tools, at /gradio_api/mcp.
    """
    page = build(desk)
    theme = gr.themes.Default(
        primary_hue="indigo", neutral_hue="slate", font=FONTS, font_mono=MONO, radius_size="sm"
    ).set(  # the theme's own are too pale to read on white
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        input_placeholder_color="*neutral_500",
    )
    with _serving_on(starting):
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
            app_kwargs={"middleware": [Middleware(Guard), Middleware(LastingNews, page=page)]},
        )
    # The first page that is there asks for the model; without one, programs should not wait for it.
    later = threading.Timer(UNASKED, desk.warm_up)
    later.daemon = True
    later.start()
    return page


@contextmanager
def _serving_on(starting: Starting) -> Iterator[None]:
    """While this lasts, Gradio launches on a socket that listens already, not on one of its own."""

    def start(app: Any, **_: Any) -> tuple[str, int, str, http_server.Server]:
        server = _Server(uvicorn.Config(app, log_level="warning"), starting.hand_over())
        server.run_in_thread()
        return starting.host, starting.port, starting.address, server

    own, http_server.start_server = http_server.start_server, start
    try:
        yield
    finally:
        http_server.start_server = own


class _Server(http_server.Server):
    def __init__(self, config: uvicorn.Config, listening: socket.socket) -> None:
        super().__init__(config)
        self._listening = listening

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        super().run(sockets or [self._listening])


class Guard:
    """Gives each browser its cookie, and each page the rule that it asks nobody else."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"cookie", b"").decode("latin-1")
        known = VISITOR in SimpleCookie(given)

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers["Content-Security-Policy"] = POLICY
                    headers["Referrer-Policy"] = "same-origin"
                    headers["X-Content-Type-Options"] = "nosniff"
                    if not known:
                        headers.append(
                            "Set-Cookie",
                            f"{VISITOR}={secrets.token_hex(16)}; Path=/; HttpOnly; SameSite=Lax; "
                            "Max-Age=31536000",
                        )
            await send(message)

        await self.app(scope, receive, answer)
