"""Serving the demo: on this computer unless told otherwise, and with nothing from the network."""

import secrets
import threading
from collections.abc import Sequence
from http.cookies import SimpleCookie
from typing import Any

import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware

from apps.demo.app import HERE, build
from apps.demo.desk import VISITOR, Desk
from apps.demo.uploads import MAX_SESSION

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "monospace")
# What the page may ask for: its own server, and nothing else.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'"
)


def serve(
    desk: Desk,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    root_path: str | None = None,
    auth: Sequence[tuple[str, str]] = (),
    mcp: bool = False,
    browser: bool = False,
) -> tuple[gr.Blocks, str]:
    """Start to serve in threads of their own; gives the page, to be closed, and its address.

    Args:
        port: 0 takes a free one.
        root_path: the path that a proxy serves it under.
        auth: names and passwords; without, nobody has to log in.
        mcp: also serve its functions as tools, at /gradio_api/mcp.

    Raises:
        ValueError: the port is taken.
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
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port or free_port(host),
            root_path=root_path,
            auth=list(auth) or None,
            mcp_server=mcp,
            inbrowser=browser,
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
            app_kwargs={"middleware": [Middleware(Guard)]},
        )
    except OSError as error:
        raise ValueError(f"port {port} on {host}: {error}; allowed: another --port") from None
    # The page is there at once; the model is, by the time somebody has found something to read.
    threading.Thread(target=lambda: desk.checkpoint, name="streamlm model", daemon=True).start()
    return page, address


def free_port(host: str) -> int:
    """A port that nobody listens on."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


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
