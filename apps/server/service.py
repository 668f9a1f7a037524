"""Service: what the endpoints work with: the model, its engine, the shelves and the metrics."""

import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

import anyio
from anyio import to_thread
from starlette.requests import Request

from apps.server.errors import ApiError, api_error
from apps.server.logs import log
from apps.server.metrics import Metrics
from apps.server.settings import Settings
from apps.server.shelves import Shelf, open_sessions
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.engine import Busy, Cancelled, Engine, Handle, Written
from streamlm.sessions.session import Session


class Service:
    """One running server.

    Attributes:
        name: of the model, for clients.
        created: when the server began, in seconds since 1970.
        stopping: no new requests are taken.
    """

    def __init__(self, checkpoint: Checkpoint, settings: Settings) -> None:
        self.checkpoint, self.settings = checkpoint, settings
        self.name = checkpoint.name.rstrip("/").rpartition("/")[2]
        self.created = int(time.time())
        self.stopping = False
        self.engine = Engine(checkpoint, rows=settings.rows, max_waiting=settings.max_waiting)
        self.sessions = open_sessions(
            settings.store,
            checkpoint,
            limit=settings.session_bytes,
            save_every=settings.save_every,
        )
        self.metrics = Metrics(self.engine, self.sessions, rows=settings.rows)
        self._closing = threading.Lock()
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return not self.stopping and self.engine.running

    def shelf(self, request: Request) -> Shelf:
        """The shelf of whoever sent a request."""
        return self._shelf_of(request.scope["streamlm"].owner)

    def _shelf_of(self, owner: str | None) -> Shelf:
        return Shelf(self.settings.store, owner, self.sessions, self.metrics)

    def error(self, error: BaseException, owner: str | None) -> ApiError:
        """What a client gets for an error, without folders of the server; the log has the rest."""
        found = api_error(error)
        if found is error:
            return found
        if found.status >= 500 and not isinstance(error, (Busy, Cancelled)):
            log("failed", level=logging.ERROR, exception=error)
        spooled = rf"{re.escape(self.settings.spool)}/\w+/\w+"
        message = self._shelf_of(owner).shown(re.sub(spooled, "the body", str(found)))
        return ApiError(
            found.status, message, param=found.param, code=found.code, headers=found.headers
        )

    def error_of(self, request: Request) -> Callable[[Exception], Any]:
        """What to send for an error behind the beginning of an answer."""
        owner = request.scope["streamlm"].owner
        return lambda error: self.error(error, owner).to_json()

    def lock(self, key: str) -> anyio.Lock:
        """The lock of a session, by `Shelf.key`, for what must not be done twice at once."""
        return self._locks.setdefault(key, anyio.Lock())

    def check_model(self, model: str | None) -> None:
        """Raise ApiError if a request asks for another model."""
        if model is not None and model != self.name:
            raise ApiError(
                404,
                f"there is no model {model!r:.100}; allowed: {self.name!r}",
                param="model",
                code="model_not_found",
            )

    async def fresh(self) -> Session:
        """A session in memory, for a request without one."""
        return await to_thread.run_sync(Session, self.checkpoint)

    async def call(self, session: Session, function: Callable[[Session], Any]) -> Any:
        """Call a function with a session in its turn, while others go on."""
        async with ending(self.engine.call(session, function, aside=True)) as handle:
            await handle.ended()
        return handle.result()

    async def written(
        self, request: Request, handle: Handle, take: Callable[[Any], Awaitable[None] | None]
    ) -> Written:
        """Pass on what a request writes, until all of it is saved.

        Args:
            take: called with each event; it may be a coroutine function.
        """
        call, first = request.scope["streamlm"], True
        async with ending(handle):
            async for event in handle:
                if first:
                    self.metrics.first_token.observe(time.perf_counter() - call.began)
                    first = False
                waits = take(event)
                if waits is not None:
                    await waits
        written: Written = handle.result()
        self.count(request, read=written.n_read, wrote=int(written))
        return written

    def count(self, request: Request, *, read: int = 0, wrote: int = 0) -> None:
        """Count tokens, in the metrics and for the request's line in the log."""
        call = request.scope["streamlm"]
        call.tokens_read += read
        call.tokens_written += wrote
        self.metrics.tokens_read.inc(read)
        self.metrics.tokens_written.inc(wrote)

    def close(self, timeout: float | None = None) -> bool:
        """End all requests, save and close all sessions; whether that succeeded in time."""
        self.stopping = True
        with self._closing:
            ended = self.engine.close(timeout)
            self.sessions.close()
            return ended


def service_of(request: Request) -> Service:
    """The service that a request was sent to."""
    service: Service = request.app.state.service
    return service


@asynccontextmanager
async def ending(handle: Handle) -> AsyncIterator[Handle]:
    """Within the block a request of the engine runs; left early, it is cancelled.

    Its session is free, and its row, once the block has ended.
    """
    try:
        yield handle
    finally:
        if not handle.done:
            handle.cancel()
            with anyio.CancelScope(shield=True):
                await handle.ended()
