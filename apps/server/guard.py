"""Guard: ASGI middleware that lets in requests with a key, or without from this computer.

Without keys, every page that a browser on this computer shows could call the server. A browser
names the page's origin and the host that it meant to reach, so that both are checked.
"""

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
        if settings.keys is None:
            names = {name.decode("latin-1"): value for name, value in headers.items()}
            refusal = settings.hosts.refusal(names, method=scope["method"])
            if refusal is not None:
                said = f"{refusal}, or a server with API keys"
                raise ApiError(403, said, code="wrong_host")
        if self._service.stopping and not open_to_all:
            again = {"Retry-After": str(RETRY_AFTER)}
            raise ApiError(503, "the server is stopping", code="stopping", headers=again)
