"""The answer around choices, as completions and chats give it: whole, or as a stream."""

import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from apps.server.choices import Positions, Usage
from apps.server.service import service_of
from apps.server.sse import Emit, Streamed, unless_hung_up


class Choice(Protocol):
    """A text that is written for a request."""

    def whole(self) -> dict[str, Any]:
        """OpenAI's shape of all of it."""

    def last(self) -> dict[str, Any]:
        """OpenAI's shape of the part that ends it in a stream."""


C = TypeVar("C", bound=Choice)


async def answer(
    request: Request,
    *,
    prefix: str,
    kinds: tuple[str, str],
    session: str | None,
    stream: bool,
    stream_usage: bool,
    choices: Callable[[Emit | None], Sequence[C]],
    write: Callable[[Sequence[C], Usage, Positions], Awaitable[None]],
) -> Response:
    """Write choices, and answer with them.

    Args:
        prefix: of the answer's id; kinds: OpenAI's names of a whole answer, and of a part.
        session: that is continued, if one is; stream_usage: end a stream with its tokens.
        choices: makes the choices, which emit their parts, or keep them where there is no stream.
        write: writes them; they are complete, and a session is saved, when it returns.
    """
    service = service_of(request)
    head = {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kinds[stream],
        "created": int(time.time()),
        "model": service.name,
    }
    usage, positions = Usage(), Positions(session)
    if not stream:
        whole = choices(None)
        await unless_hung_up(request.receive, partial(write, whole, usage, positions))
        found = {"choices": [choice.whole() for choice in whole], "usage": usage.to_json()}
        return JSONResponse({**head, **found, **positions.to_json()})
    unknown = {"usage": None} if stream_usage else {}

    async def work(emit: Emit) -> None:
        async def send(part: dict[str, Any]) -> None:
            await emit({**head, "choices": [part], **unknown})

        parts = choices(send)
        await write(parts, usage, positions)
        for choice in parts:
            await emit({**head, "choices": [choice.last()], **unknown, **positions.to_json()})
        if stream_usage:
            await emit({**head, "choices": [], "usage": usage.to_json()})

    return Streamed(work, error=service.error_of(request), done=True)
