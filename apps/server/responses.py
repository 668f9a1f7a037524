"""POST /v1/responses: a conversation is a session, and a response is a snapshot of one.

The id of a response names the session and a pin in its store, which keeps the snapshot after the
response. To answer the newest response goes on with the session; to answer an older one begins a
branch there. Nothing is copied, and all of it survives a restart.
"""

import base64
import binascii
import re
import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from apps.server.asked import Asked, take_common, take_stream
from apps.server.bodies import read_fields
from apps.server.chat import DEFAULT_TOKENS, REPLY
from apps.server.errors import ApiError
from apps.server.fields import Fields
from apps.server.messages import Chat, chat_of, require_chat
from apps.server.response_shapes import Shape
from apps.server.service import Service, service_of
from apps.server.shelves import Shelf, aside
from apps.server.sse import Emit, Streamed, unless_hung_up
from memory_store import Commit, NotFound, Ref
from streamlm.engine import Handle
from streamlm.sessions.session import Session


@dataclass(frozen=True)
class ResponseId:
    """What the id of a response says.

    Attributes:
        session: NAME or NAME@BRANCH, "" for a response that was not kept.
        pin: of its snapshot.
    """

    session: str
    pin: str

    @classmethod
    def new(cls, session: str | None) -> "ResponseId":
        """The id of a response that is about to be written."""
        return cls(session or "", f"response-{secrets.token_hex(12)}")

    def __str__(self) -> str:
        name = base64.urlsafe_b64encode(self.session.encode()).decode().rstrip("=")
        return f"resp_{name}.{self.pin.removeprefix('response-')}"

    @classmethod
    def parse(cls, text: str) -> "ResponseId":
        """The inverse of `str`.

        Raises:
            NotFound: it is no id of a response that was kept.
        """
        found = re.fullmatch(r"resp_([A-Za-z0-9_-]+)\.([0-9a-f]{24})", text)
        try:
            padded = found[1] + "=" * (-len(found[1]) % 4) if found is not None else "?"
            session = base64.urlsafe_b64decode(padded).decode()
        except (binascii.Error, UnicodeDecodeError):
            session = ""
        if found is None or not session:
            raise _no_response(text)
        return cls(session, f"response-{found[2]}")


@dataclass(frozen=True)
class Wanted:
    """One request.

    Attributes:
        previous: the response that is answered; None goes on with `asked.session`, or begins.
        echoed: fields that the answer repeats.
    """

    chat: Chat
    asked: Asked
    previous: ResponseId | None
    echoed: dict[str, Any]
    stream: bool

    @classmethod
    def take(cls, fields: Fields, service: Service) -> "Wanted":
        """Raises ApiError, ValueError or NotFound if a field is not allowed."""
        service.check_model(fields.text("model"))
        require_chat(service.checkpoint, service.name)
        given, instructions = fields.take("input"), fields.text("instructions")
        named, previous = _conversation(fields), fields.text("previous_response_id")
        store = fields.flag("store", default=True)
        if named is not None and previous is not None:
            message = "conversation with previous_response_id; allowed: one of them"
            raise ApiError(400, message, param="previous_response_id")
        answered = None if previous is None else ResponseId.parse(previous)
        new = f"response-{secrets.token_hex(8)}" if store else None
        asked = Asked.take(
            fields,
            service.settings,
            REPLY,
            limits=("max_output_tokens",),
            default_limit=DEFAULT_TOKENS,
            session=answered.session if answered is not None else named or new,
        )
        chat = _chat(given, instructions, goes_on=(named or previous) is not None)
        stream, _ = take_stream(fields)
        metadata = fields.take("metadata") or {}
        take_common(fields)
        fields.ignore("parallel_tool_calls", "max_tool_calls", "prompt_cache_retention")
        fields.neutral(
            background=(False,),
            include=([],),
            reasoning=({},),
            text=({"format": {"type": "text"}},),
            tool_choice=("none", "auto"),
            tools=([],),
            top_logprobs=(0,),
            truncation=("disabled", "auto"),
        )
        fields.end()
        echoed = {
            "instructions": instructions,
            "conversation": None if named is None else {"id": named},
            "previous_response_id": previous,
            "store": store,
            "metadata": metadata,
        }
        return cls(chat, asked, answered, echoed, stream)


def _conversation(fields: Fields) -> str | None:
    """The name of a conversation, which clients send as a string or as an object."""
    value = fields.take("conversation")
    name = value.get("id") if isinstance(value, dict) else value
    if value is not None and not (isinstance(name, str) and name):
        raise ApiError(400, "conversation; allowed: the name of a session", param="conversation")
    return name


def _chat(given: Any, instructions: str | None, *, goes_on: bool) -> Chat:
    """The messages of a request; one that goes on with a conversation brings the newest alone."""
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if isinstance(items, list):
        for item in items:
            if isinstance(item, dict) and item.get("type", "message") != "message":
                raise ApiError(
                    400, f"input has a {str(item['type'])!r:.40}; allowed: messages", param="input"
                )
    chat = chat_of(items, "input")
    if instructions is not None and chat.system is not None:
        message = "instructions with a system message; allowed: one of them"
        raise ApiError(400, message, param="instructions")
    if goes_on and chat.history:
        message = "input has several messages; allowed: one, the conversation has the others"
        raise ApiError(400, message, param="input")
    return Chat(instructions if chat.system is None else chat.system, chat.history, chat.message)


async def responses(request: Request) -> Response:
    """Answer, as a conversation that can be gone on with anywhere."""
    service = service_of(request)
    wanted = Wanted.take(await read_fields(request), service)
    if wanted.stream:

        async def stream(emit: Emit) -> None:
            await _respond(request, wanted, emit)

        error = service.error_of(request)
        return Streamed(stream, error=lambda e: {"type": "error", **error(e)["error"]}, named=True)
    work = partial(_respond, request, wanted, None)
    return JSONResponse(await unless_hung_up(request.receive, work))


async def _respond(request: Request, wanted: Wanted, emit: Emit | None) -> dict[str, Any]:
    service = service_of(request)
    shelf = service.shelf(request)
    async with AsyncExitStack() as stack:
        name, handle = await _begin(stack, service, shelf, wanted)
        id = ResponseId.new(name)
        shape = Shape(str(id), service, wanted.asked, wanted.echoed, emit, session=name)
        written = await service.written(request, handle, shape.take)
        shape.position = written.position
        if name is not None and written.saved is not None:
            await aside(_pin, shelf, name, written.saved, id.pin)
        return await shape.end(written)


async def _begin(
    stack: AsyncExitStack, service: Service, shelf: Shelf, wanted: Wanted
) -> tuple[str | None, Handle]:
    """Let the reply wait for its turn; returns the name of its session, None for one in memory."""
    name, asked = wanted.asked.session, wanted.asked
    if name is None:
        return None, _reply(service, await service.fresh(), wanted, asked.choice(0))
    if wanted.previous is None:
        session = await stack.enter_async_context(shelf.use(name, create=True))
        return name, _reply(service, session, wanted, asked)
    commit = await aside(_pinned, shelf, wanted.previous)
    # What answers the same response at the same time must see that this one was first.
    async with service.lock(shelf.key(name)):
        session = await stack.enter_async_context(shelf.use(name))
        newest = await service.call(session, _newest)
        if newest != commit:
            base, branch = name.partition("@")[0], f"response-{secrets.token_hex(8)}"
            name = f"{base}@{branch}"
            await aside(_fork, shelf, wanted.previous, commit, branch)
            session = await stack.enter_async_context(shelf.use(name))
        return name, _reply(service, session, wanted, asked)


def _reply(service: Service, session: Session, wanted: Wanted, asked: Asked) -> Handle:
    chat = wanted.chat
    return service.engine.reply(
        session,
        chat.message,
        asked.sampling,
        system=chat.system,
        history=chat.history,
        **asked.engine(),
    )


def _newest(session: Session) -> Commit | None:
    """The snapshot that a session stands at; None if it has read more."""
    saved = session.saved
    stands = saved is not None and saved.position == session.position
    return saved.commit if saved is not None and stands else None


def _pinned(shelf: Shelf, id: ResponseId) -> Commit:
    try:
        store, _ = shelf.check(id.session)
        return store.pinned(id.pin)
    except (NotFound, ValueError):
        raise _no_response(str(id)) from None


def _pin(shelf: Shelf, name: str, saved: Ref, pin: str) -> None:
    shelf.check(name)[0].pin(saved, pin)


def _fork(shelf: Shelf, id: ResponseId, commit: Commit, branch: str) -> None:
    shelf.check(id.session)[0].publish(commit, branch=branch)


def _no_response(id: str) -> NotFound:
    return NotFound(f"no response {id!r:.100}; allowed: one that was stored and not deleted")


ROUTES = [Route("/v1/responses", responses, methods=["POST"])]
