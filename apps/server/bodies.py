"""Bodies of requests: JSON in memory, and texts of any length on disk."""

import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

from starlette.requests import ClientDisconnect, Request

from apps.server.errors import ApiError, HungUp
from apps.server.fields import Fields
from apps.server.service import service_of
from apps.server.shelves import aside

BLOCK = 1 << 20  # bytes that are held before they are written to disk


async def read_fields(request: Request) -> Fields:
    """The JSON object of a request; an empty body is an empty object.

    Raises:
        ApiError: it is too large, or no JSON object.
    """
    body = b"".join([part async for part in _parts(request, service_of(request).settings.max_json)])
    try:
        value = json.loads(body, parse_constant=_no_number) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body is not a JSON object; allowed: {…}")
    return Fields(value)


@asynccontextmanager
async def spooled(request: Request) -> AsyncIterator[Path]:
    """The body of a request in a file, which is removed after the block.

    Raises:
        ApiError: it is too large.
    """
    settings = service_of(request).settings
    folder = tempfile.TemporaryDirectory(dir=settings.spool)
    try:
        path = Path(folder.name) / "body"
        with open(path, "wb") as file:
            held = bytearray()
            async for part in _parts(request, settings.max_body):
                held += part
                if len(held) >= BLOCK:
                    await aside(file.write, bytes(held))
                    held.clear()
            await aside(file.write, bytes(held))
        yield path
    finally:
        folder.cleanup()


async def _parts(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body in parts."""
    message = f"the body is longer than {limit:,} bytes; allowed: at most that"
    given = request.headers.get("content-length", "")
    if given.isdecimal() and int(given) > limit:
        raise ApiError(413, message)
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise ApiError(413, message)
            yield part
    except ClientDisconnect:
        raise HungUp("the client hung up before the end of its body") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")
