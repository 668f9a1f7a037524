"""Guard: ASGI middleware that lets in requests with a key, or without from this computer.

Without keys, every page that a browser on this computer shows could call the server. A browser
names the page's origin and the host that it meant to reach, so that both can be checked.
"""

from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from apps.server.errors import RETRY_AFTER, ApiError
from apps.server.service import Service

OPEN = ("/health", "/ready")  # for whoever watches the process; they tell nothing else


class Guard:
    """Refuses requests without a key, or to another host, or while the server is stopping."""

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self.app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._check(scope)
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        settings, open_to_all = self._service.settings, scope["path"] in OPEN
        if settings.keys is not None and not open_to_all:
            scheme, _, key = headers.get(b"authorization", "").partition(" ")
            owner = settings.keys.owner(key.strip()) if scheme.lower() == "bearer" else None
            if owner is None:
                raise ApiError(
                    401,
                    "no key, or not one of this server; allowed: Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            scope["streamlm"].owner = owner
        if settings.keys is None and settings.hosts:
            self._check_host("Host", f"//{headers.get(b'host', '')}")
            if b"origin" in headers:
                self._check_host("Origin", headers[b"origin"])
        if self._service.stopping and not open_to_all:
            again = {"Retry-After": str(RETRY_AFTER)}
            raise ApiError(503, "the server is stopping", code="stopping", headers=again)

    def _check_host(self, header: str, value: str) -> None:
        hosts = self._service.settings.hosts
        try:
            host = urlsplit(value).hostname
        except ValueError:
            host = None
        if host not in hosts:
            raise ApiError(
                403,
                f"{header} {value.removeprefix('//')!r:.100} is not this server; allowed: "
                f"{', '.join(sorted(hosts))}, or a server with API keys",
                code="wrong_host",
            )
