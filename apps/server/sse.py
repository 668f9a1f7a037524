"""Answers that take long: whole, or as events; a client that hangs up ends the work on them."""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from apps.server.errors import HungUp

T = TypeVar("T")
Emit = Callable[[Any], Awaitable[None]]
PING = 15.0  # seconds; proxies close connections on which nothing comes


async def unless_hung_up(receive: Receive, work: Callable[[], Awaitable[T]]) -> T:
    """The result of some work, which is cancelled when the client hangs up.

    Args:
        receive: of the request, whose body was read.

    Raises:
        HungUp: the client did.
    """
    result: list[T] = []
    failures: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            result.append(await work())
        except Exception as error:
            failures.append(error)
        group.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if not result:
        raise HungUp("the client hung up")
    return result[0]


class Streamed(Response):
    """An answer that is sent while it is made.

    Nothing is sent before the first event, so that whatever fails before it has a status.

    Args:
        work: makes the answer, and sends its events as JSON values through its argument.
        error: what to send for an error behind the first event, as a JSON value.
        lines: send a JSON value a line, instead of server-sent events.
        named: name each server-sent event by its "type".
        done: end server-sent events with [DONE].
    """

    def __init__(
        self,
        work: Callable[[Emit], Awaitable[None]],
        *,
        error: Callable[[Exception], Any],
        lines: bool = False,
        named: bool = False,
        done: bool = False,
    ) -> None:
        kind = "application/x-ndjson" if lines else "text/event-stream"
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(media_type=kind, headers=headers)
        del self.headers["content-length"]
        self._work, self._error = work, error
        self._lines, self._named, self._done = lines, named, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        out = _Out(self, send)
        try:
            await unless_hung_up(receive, partial(self._run, out))
        except Exception as error:
            scope["streamlm"].failed = error
            if isinstance(error, HungUp) or not out.begun:
                raise
            await out.write(self._event(self._error(error)))
        await out.end()

    async def _run(self, out: "_Out") -> None:
        async with anyio.create_task_group() as group:
            if not self._lines:
                group.start_soon(out.ping)
            failure: Exception | None = None
            try:
                await self._work(lambda value: out.write(self._event(value)))
            except Exception as error:
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if self._done:
            await out.write(b"data: [DONE]\n\n")

    def _event(self, value: Any) -> bytes:
        text = json.dumps(value, ensure_ascii=False)
        if self._lines:
            return f"{text}\n".encode()
        name = f"event: {value['type']}\n" if self._named and "type" in value else ""
        return f"{name}data: {text}\n\n".encode()


class _Out:
    """What a streamed answer is written to."""

    def __init__(self, response: Response, send: Send) -> None:
        self._response, self._send = response, send
        self._lock = anyio.Lock()
        self.begun = False

    async def write(self, data: bytes) -> None:
        async with self._lock:
            if not self.begun:
                self.begun = True
                await self._send(
                    {
                        "type": "http.response.start",
                        "status": self._response.status_code,
                        "headers": self._response.raw_headers,
                    }
                )
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def ping(self) -> None:
        while True:
            await anyio.sleep(PING)
            await self.write(b": waiting\n\n")

    async def end(self) -> None:
        if not self.begun:
            await self.write(b"")
        await self._send({"type": "http.response.body", "body": b""})
