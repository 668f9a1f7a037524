"""The ASGI application, assembled from the other files."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from apps.server import chat, completions, responses, sessions, status, texts, transfer
from apps.server.errors import ApiError
from apps.server.guard import Guard
from apps.server.middleware import Requests
from apps.server.service import Service

ROUTES = [
    *status.ROUTES,
    *completions.ROUTES,
    *chat.ROUTES,
    *responses.ROUTES,
    *sessions.ROUTES,
    *texts.ROUTES,
    *transfer.ROUTES,
]


def build(service: Service) -> Starlette:
    """The application; it closes the service when it ends."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await to_thread.run_sync(service.close)

    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(Requests, service=service), Middleware(Guard, service=service)],
        exception_handlers={HTTPException: _http_error},
        lifespan=lifespan,
    )
    app.state.service = service
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    """Errors of routing: no such path, or another method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{request.method} {request.url.path}; allowed: {allowed}"
    else:
        message = f"no {request.url.path} here"
    found = ApiError(error.status_code, message, headers=error.headers)
    return JSONResponse(found.to_json(), found.status, found.headers)
