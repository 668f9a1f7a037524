"""Middleware: each request gets an id, a line in the log, its metrics, and an answer."""

import re
import secrets
import time
from dataclasses import dataclass, field

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apps.server.errors import HungUp, api_error
from apps.server.logs import log
from apps.server.service import Service
from memory_store import StoreError

HUNG_UP = 499  # in logs and metrics; nobody gets it


@dataclass
class Call:
    """One request.

    Attributes:
        id: the client's X-Request-Id, or a new one.
        began: when it arrived, by `time.perf_counter`.
        owner: whose key it has; None without keys.
        tokens_read, tokens_written: so far.
        failed: why its answer ended early, after it had begun.
    """

    id: str
    began: float = field(default_factory=time.perf_counter)
    owner: str | None = None
    tokens_read: int = 0
    tokens_written: int = 0
    failed: BaseException | None = None


class Requests:
    """ASGI middleware: ids, logs, metrics, and errors in OpenAI's shape."""

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self.app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = scope["streamlm"] = Call(_request_id(scope))
        status = 0

        async def respond(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", call.id.encode()),
                ]
            await send(message)

        try:
            await self.app(scope, receive, respond)
        except HungUp as error:
            call.failed = error
        except Exception as error:
            call.failed = error
            if not status:
                await self._answer(error, scope, receive, respond)
        finally:
            self._record(scope, call, status)

    async def _answer(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._service.error(error, scope["streamlm"].owner)
        await JSONResponse(found.to_json(), found.status, found.headers)(scope, receive, send)

    def _record(self, scope: Scope, call: Call, status: int) -> None:
        metrics = self._service.metrics
        endpoint = getattr(scope.get("endpoint"), "__name__", "none")
        seconds = time.perf_counter() - call.began
        if isinstance(call.failed, HungUp):
            status = HUNG_UP
            metrics.hang_ups.inc()
        elif isinstance(call.failed, StoreError) and api_error(call.failed).status >= 500:
            metrics.store_errors.inc()
        metrics.requests.labels(endpoint, str(status)).inc()
        metrics.request_seconds.labels(endpoint).observe(seconds)
        log(
            "request",
            id=call.id,
            method=scope["method"],
            path=scope["path"],
            status=status,
            seconds=round(seconds, 4),
            owner=call.owner,
            tokens_read=call.tokens_read,
            tokens_written=call.tokens_written,
            failed=None if call.failed is None else str(call.failed)[:500],
        )


def _request_id(scope: Scope) -> str:
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,100}", given) else secrets.token_hex(12)
