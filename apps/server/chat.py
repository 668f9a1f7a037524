"""POST /v1/chat/completions: answer in a chat, where the model has a chat template.

Without a session, all messages are read anew. With one, its newest message is read alone: the
session remembers the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from apps.server.answering import answer
from apps.server.asked import MOST_CHOICES, MOST_LOGPROBS, Asked, take_common, take_stream
from apps.server.bodies import read_fields
from apps.server.choices import Positions, Usage, all_of
from apps.server.errors import ApiError
from apps.server.fields import Fields
from apps.server.logprobs import message_logprobs
from apps.server.messages import Chat, chat_of, require_chat
from apps.server.service import Service, service_of
from apps.server.sse import Emit
from streamlm.engine import Written
from streamlm.runtime.reports import TokenLogprob
from streamlm.runtime.sampling import Sampling
from streamlm.sessions.session import Session

DEFAULT_TOKENS = 512
REPLY = Sampling(temperature=0.2, top_p=0.9, repetition_penalty=1.1)  # as `Session.reply`


@dataclass(frozen=True)
class ChatCompletion:
    """One request."""

    chat: Chat
    n: int
    asked: Asked
    stream: bool
    stream_usage: bool

    @classmethod
    def take(cls, fields: Fields, service: Service) -> "ChatCompletion":
        """Raises ApiError or ValueError if a field is not allowed."""
        service.check_model(fields.text("model"))
        require_chat(service.checkpoint, service.name)
        chat = chat_of(fields.take("messages"), "messages")
        asked = Asked.take(
            fields,
            service.settings,
            REPLY,
            limits=("max_completion_tokens", "max_tokens"),
            default_limit=DEFAULT_TOKENS,
        )
        logprobs, top = (
            fields.flag("logprobs"),
            fields.optional_whole("top_logprobs", most=MOST_LOGPROBS),
        )
        if top is not None and not logprobs:
            message = "top_logprobs without logprobs; allowed: with logprobs = true"
            raise ApiError(400, message, param="top_logprobs")
        n = fields.whole("n", 1, least=1, most=MOST_CHOICES)
        stream, usage = take_stream(fields)
        take_common(fields)
        fields.ignore("parallel_tool_calls", "prediction", "verbosity")
        fields.neutral(
            response_format=({"type": "text"},),
            tools=([],),
            functions=([],),
            tool_choice=("none", "auto"),
            function_call=("none", "auto"),
            modalities=(["text"],),
            reasoning_effort=("none",),
            store=(False,),
        )
        fields.end()
        if asked.session is not None and n > 1:
            message = "n > 1 with a session, which continues in one way; allowed: 1, or forks"
            raise ApiError(400, message, param="n")
        return cls(chat, n, asked.with_logprobs((top or 0) if logprobs else None), stream, usage)


@dataclass
class _Choice:
    """One reply. `emit` is given each part of it; None keeps them for the whole answer."""

    index: int
    asked: Asked
    emit: Emit | None
    reason: str | None = None
    begun: bool = False
    texts: list[str] = field(default_factory=list)
    tokens: list[TokenLogprob] = field(default_factory=list)

    async def take(self, event: str | TokenLogprob) -> None:
        """Add what was written."""
        text, tokens = (event, []) if isinstance(event, str) else (event.text, [event])
        if self.emit is not None:
            await self.emit(self.part({"content": text}, tokens))
        else:
            self.texts.append(text)
            self.tokens += tokens

    def part(self, delta: dict[str, Any], tokens: list[TokenLogprob]) -> dict[str, Any]:
        """OpenAI's shape of a part; the first names the role."""
        if not self.begun:
            self.begun, delta = True, {"role": "assistant", **delta}
        logprobs = message_logprobs(tokens) if tokens else None
        return {
            "index": self.index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": self.reason,
        }

    def whole(self) -> dict[str, Any]:
        """OpenAI's shape of all of it."""
        wanted = self.asked.top_logprobs is not None
        return {
            "index": self.index,
            "message": {"role": "assistant", "content": "".join(self.texts), "refusal": None},
            "logprobs": message_logprobs(self.tokens) if wanted else None,
            "finish_reason": self.reason,
        }

    def last(self) -> dict[str, Any]:
        """The part that ends it in a stream."""
        return self.part({}, [])


async def chat_completions(request: Request) -> Response:
    """Answer in a chat."""
    wanted = ChatCompletion.take(await read_fields(request), service_of(request))
    return await answer(
        request,
        prefix="chatcmpl",
        kinds=("chat.completion", "chat.completion.chunk"),
        session=wanted.asked.session,
        stream=wanted.stream,
        stream_usage=wanted.stream_usage,
        choices=partial(_choices, wanted),
        write=partial(_reply_all, request, wanted),
    )


def _choices(wanted: ChatCompletion, emit: Emit | None) -> list[_Choice]:
    asked = wanted.asked
    return [
        _Choice(n, asked if asked.session is not None else asked.choice(n), emit)
        for n in range(wanted.n)
    ]


async def _reply_all(
    request: Request,
    wanted: ChatCompletion,
    choices: Sequence[_Choice],
    usage: Usage,
    positions: Positions,
) -> None:
    """Write all replies; they are complete, and a session is saved, when this returns."""
    service, name = service_of(request), wanted.asked.session
    if name is not None:
        async with service.shelf(request).use(name, create=True) as session:
            written = await _reply(request, session, wanted.chat, choices[0], usage)
            positions.after = written.position
        return

    async def fresh(choice: _Choice) -> None:
        await _reply(request, await service.fresh(), wanted.chat, choice, usage)

    await all_of([partial(fresh, choice) for choice in choices])
    usage.read //= len(choices)  # each has read all messages, which the client has sent once


async def _reply(
    request: Request, session: Session, chat: Chat, choice: _Choice, usage: Usage
) -> Written:
    service, asked = service_of(request), choice.asked
    handle = service.engine.reply(
        session,
        chat.message,
        asked.sampling,
        system=chat.system,
        history=chat.history,
        **asked.engine(),
    )
    written = await service.written(request, handle, choice.take)
    choice.reason = written.reason
    usage.add(written)
    return written


ROUTES = [Route("/v1/chat/completions", chat_completions, methods=["POST"])]
