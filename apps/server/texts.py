"""/sessions/NAME/feed and /score: texts of any length, the body of the request as it stands.

A body is on disk before it is read, so that a slow client holds up nobody, and an interrupted feed
goes on where it was saved when the same body is sent again.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from apps.server.bodies import spooled
from apps.server.errors import ApiError
from apps.server.service import ending, service_of
from apps.server.sse import Emit, Streamed, unless_hung_up
from streamlm.engine import Handle
from streamlm.runtime.reports import ReadReport
from streamlm.sessions.feed import Errors
from streamlm.sessions.session import Session

Begin = Callable[[Session, Path], Handle]
MOST_LOGPROBS = 1 << 20  # bytes of a text whose log-probabilities are listed


async def feed(request: Request) -> Response:
    """Read the body into a session, which begins with it if there is none."""
    service = service_of(request)
    errors, score = _errors(request), _flag(request, "score")

    def begin(session: Session, path: Path) -> Handle:
        return service.engine.feed(session, path, errors=errors, score=score)

    return await _answer(request, begin, create=True)


async def score(request: Request) -> Response:
    """Score the body given all that a session has read; the session is not modified."""
    service = service_of(request)
    errors, logprobs = _errors(request), _flag(request, "logprobs")

    def begin(session: Session, path: Path) -> Handle:
        size = path.stat().st_size
        if logprobs and size > MOST_LOGPROBS:
            raise ApiError(413, f"logprobs of {size:,} bytes; allowed: at most {MOST_LOGPROBS:,}")
        return service.engine.score(session, path, errors=errors, logprobs=logprobs)

    return await _answer(request, begin, create=False)


async def _answer(request: Request, begin: Begin, *, create: bool) -> Response:
    """The report, whole or with the progress before it, as the client accepts it.

    A stream begins while the body is there, so the body is read within it.
    """
    service = service_of(request)
    accepted = request.headers.get("accept", "")
    lines = "application/x-ndjson" in accepted
    body = spooled(request)
    path = await body.__aenter__()

    async def work(emit: Emit | None) -> dict[str, Any]:
        try:
            return await _read(request, begin, path, emit, create=create)
        finally:
            await body.__aexit__(None, None, None)

    if lines or "text/event-stream" in accepted:

        async def stream(emit: Emit) -> None:
            await emit({"done": True, **await work(emit)})

        return Streamed(stream, error=service.error_of(request), lines=lines)
    whole = cast(Callable[[], Awaitable[dict[str, Any]]], partial(work, None))
    return JSONResponse(await unless_hung_up(request.receive, whole))


async def _read(
    request: Request, begin: Begin, path: Path, emit: Emit | None, *, create: bool
) -> dict[str, Any]:
    service, name = service_of(request), request.path_params["name"]
    async with (
        service.shelf(request).use(name, create=create) as session,
        ending(begin(session, path)) as handle,
    ):
        counted = 0
        async for report in handle:
            service.count(request, read=report.tokens - counted)
            counted = report.tokens
            if emit is not None:
                await emit({"done": False, **_shape(name, report)})
        report = handle.result()
        service.count(request, read=report.tokens - counted)
        return _shape(name, report)


def _shape(name: str, report: ReadReport) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "name": name,
        "position": report.position,
        "tokens": report.tokens,
        "bytes": report.n_bytes,
        "skipped_bytes": report.skipped_bytes,
        "seconds": round(report.seconds, 3),
        "bits_per_byte": report.bits_per_byte,
    }
    if report.ids:
        shape |= {"ids": list(report.ids), "logprobs": list(report.logprobs)}
    return shape


def _errors(request: Request) -> Errors:
    given = request.query_params.get("errors", "strict")
    if given not in ("strict", "replace"):
        message = f"errors = {given!r:.40}; allowed: 'strict', 'replace'"
        raise ApiError(400, message, param="errors")
    return cast(Errors, given)


def _flag(request: Request, name: str) -> bool:
    given = request.query_params.get(name, "false")
    if given not in ("true", "false"):
        raise ApiError(400, f"{name} = {given!r:.40}; allowed: 'true', 'false'", param=name)
    return given == "true"


ROUTES = [
    Route("/sessions/{name}/feed", feed, methods=["POST"]),
    Route("/sessions/{name}/score", score, methods=["POST"]),
]
