"""The demo as an ASGI application: the page with its theme, cookies and security headers."""

import secrets
import threading
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware

from apps.demo.app_state import COOKIE, AppState
from apps.demo.page import build
from apps.demo.serving.calls import Calls
from apps.demo.serving.cookies import cookie
from apps.demo.serving.event_stream import PersistentStream
from apps.demo.serving.files import Files
from apps.demo.serving.login import USER
from apps.demo.uploads import MAX_SESSION

HERE = Path(__file__).parent
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "monospace")
LOAD_AFTER = 15.0  # seconds after which the model is loaded even if no page was opened
# The page may load resources from its own server only.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)


def application(
    app: AppState, *, root_path: str | None = None, login: bool = False, mcp: bool = False
) -> FastAPI:
    """The application, to be served within its lifespan.

    Args:
        root_path: the path under which a proxy serves the page.
        login: whether requests come through `Login`.
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
    middleware = [
        Middleware(Security),
        Middleware(Files, state=app),
        Middleware(Calls, page=page, files=app.files),
        Middleware(PersistentStream, page=page),
    ]
    served = gr.mount_gradio_app(
        FastAPI(middleware=middleware, openapi_url=None),
        page,
        "/",
        root_path=root_path,
        auth_dependency=(lambda request: request.scope.get(USER)) if login else None,
        mcp_server=mcp,
        show_error=False,
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
    )
    # The first page triggers loading the model; API clients should not wait for a page.
    timer = threading.Timer(LOAD_AFTER, app.warm_up)
    timer.daemon = True
    timer.start()
    return served


class Security:
    """ASGI middleware: gives each browser its cookie, and each page its security headers."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_cookie = bool(cookie(scope, COOKIE))

        async def respond(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                for name in ("access-control-allow-origin", "access-control-allow-credentials"):
                    del headers[name]  # Gradio's; no other page may read what is here
                if headers.get("content-type", "").startswith("text/html"):
                    headers["Content-Security-Policy"] = POLICY
                    headers["X-Frame-Options"] = "DENY"
                    headers["Referrer-Policy"] = "same-origin"
                    if not has_cookie:
                        headers.append(
                            "Set-Cookie",
                            f"{COOKIE}={secrets.token_hex(16)}; Path=/; HttpOnly; SameSite=Lax; "
                            "Max-Age=31536000",
                        )
            await send(message)

        await self.app(scope, receive, respond)
