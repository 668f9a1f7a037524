"""POST /v1/completions: continue a text, or a session."""

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
from apps.server.errors import ApiError, refused
from apps.server.fields import Fields
from apps.server.logprobs import TextLogprobs, prompt_logprobs
from apps.server.service import Service, ending, service_of
from apps.server.sse import Emit
from streamlm.engine import Written
from streamlm.runtime.reports import TokenLogprob
from streamlm.runtime.sampling import Sampling
from streamlm.sessions.session import Session

DEFAULT_TOKENS = 16  # as OpenAI's


@dataclass(frozen=True)
class Completion:
    """One request.

    Attributes:
        n: choices for each prompt; echo: begin each with its prompt.
    """

    prompts: list[str]
    n: int
    echo: bool
    asked: Asked
    stream: bool
    stream_usage: bool

    @classmethod
    def take(cls, fields: Fields, service: Service) -> "Completion":
        """Raises ApiError or ValueError if a field is not allowed."""
        service.check_model(fields.text("model"))
        prompts = fields.texts("prompt", most=MOST_CHOICES) or [""]
        asked = Asked.take(
            fields, service.settings, Sampling(), default_limit=DEFAULT_TOKENS
        ).with_logprobs(fields.optional_whole("logprobs", most=MOST_LOGPROBS))
        n, echo = fields.whole("n", 1, least=1, most=MOST_CHOICES), fields.flag("echo")
        stream, usage = take_stream(fields)
        take_common(fields)
        fields.neutral(best_of=(1, n), suffix=("",))
        fields.end()
        if len(prompts) * n > MOST_CHOICES:
            raise refused("n", n, f"at most {MOST_CHOICES} choices of all prompts")
        if asked.session is not None and (len(prompts) > 1 or n > 1):
            name = "n" if n > 1 else "prompt"
            message = "a session continues in one way; allowed: one prompt and n = 1, or forks"
            raise ApiError(400, message, param=name)
        if asked.session is not None and echo and asked.top_logprobs is not None:
            message = "echo with logprobs and a session; allowed: two of them, or score"
            raise ApiError(400, message, param="echo")
        return cls(prompts, n, echo, asked, stream, usage)


@dataclass
class _Choice:
    """One text. `emit` is given each part of it; None keeps them for the whole answer."""

    index: int
    prompt: str
    asked: Asked
    emit: Emit | None
    reason: str | None = None
    texts: list[str] = field(default_factory=list)
    logprobs: TextLogprobs | None = None

    def __post_init__(self) -> None:
        if self.asked.top_logprobs is not None:
            self.logprobs = TextLogprobs()

    async def take(self, event: str | TokenLogprob) -> None:
        """Add what was written."""
        if isinstance(event, str):
            await self._add(event, [])
        else:
            await self._add(event.text, [event])

    async def add_prompt(self, tokens: list[TokenLogprob] | None) -> None:
        """Begin with the prompt."""
        await self._add(self.prompt, tokens or [])

    async def _add(self, text: str, tokens: list[TokenLogprob]) -> None:
        part = None
        if self.logprobs is not None:
            part = self.logprobs.add(tokens)
        if self.emit is None:
            self.texts.append(text)
        else:
            await self.emit(self.shape(text, part))

    def shape(self, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """OpenAI's shape."""
        return {
            "index": self.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": self.reason,
        }

    def whole(self) -> dict[str, Any]:
        """All of it."""
        logprobs = self.logprobs.all() if self.logprobs is not None else None
        return self.shape("".join(self.texts), logprobs)

    def last(self) -> dict[str, Any]:
        """The part that ends it in a stream."""
        return self.shape("", None)


async def completions(request: Request) -> Response:
    """Continue texts."""
    wanted = Completion.take(await read_fields(request), service_of(request))
    return await answer(
        request,
        prefix="cmpl",
        kinds=("text_completion", "text_completion"),
        session=wanted.asked.session,
        stream=wanted.stream,
        stream_usage=wanted.stream_usage,
        choices=partial(_choices, wanted),
        write=partial(_write_all, request, wanted),
    )


def _choices(wanted: Completion, emit: Emit | None) -> list[_Choice]:
    return [
        _Choice(
            index * wanted.n + n,
            prompt,
            wanted.asked if wanted.asked.session is not None else wanted.asked.choice(n),
            emit,
        )
        for index, prompt in enumerate(wanted.prompts)
        for n in range(wanted.n)
    ]


async def _write_all(
    request: Request,
    wanted: Completion,
    choices: Sequence[_Choice],
    usage: Usage,
    positions: Positions,
) -> None:
    """Write all choices; they are complete, and a session is saved, when this returns."""
    service = service_of(request)
    if wanted.asked.session is not None:
        (choice,) = choices
        shelf = service.shelf(request)
        async with shelf.use(wanted.asked.session, create=True) as session:
            if wanted.echo:
                await choice.add_prompt(None)
            written = await _write(request, session, choice, usage, prompt=choice.prompt)
            positions.after = written.position
        return
    groups = [choices[at : at + wanted.n] for at in range(0, len(choices), wanted.n)]
    await all_of([partial(_write_group, request, wanted, group, usage) for group in groups])


async def _write_group(
    request: Request, wanted: Completion, group: Sequence[_Choice], usage: Usage
) -> None:
    """The choices of one prompt, which is read once."""
    service, prompt = service_of(request), group[0].prompt
    if wanted.echo:
        tokens = None
        if wanted.asked.top_logprobs is not None and prompt:
            tokens = await prompt_logprobs(service, prompt)
        for choice in group:
            await choice.add_prompt(tokens)
    session = await service.fresh()
    if len(group) == 1:
        await _write(request, session, group[0], usage, prompt=prompt)
        return
    async with ending(service.engine.generate(session, prompt, max_tokens=0)) as handle:
        await handle.ended()
    n_read = handle.result().n_read
    service.count(request, read=n_read)
    usage.read += n_read
    forks = [session.fork() for _ in group]
    works = zip(forks, group, strict=True)
    await all_of([partial(_write, request, fork, choice, usage) for fork, choice in works])


async def _write(
    request: Request, session: Session, choice: _Choice, usage: Usage, *, prompt: str = ""
) -> Written:
    service = service_of(request)
    handle = service.engine.generate(
        session, prompt, choice.asked.sampling, **choice.asked.engine()
    )
    written = await service.written(request, handle, choice.take)
    choice.reason = written.reason
    usage.add(written)
    return written


ROUTES = [Route("/v1/completions", completions, methods=["POST"])]
