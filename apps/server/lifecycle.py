"""Lifecycle: on SIGTERM or Ctrl-C the server takes no new requests, finishes its own, and ends.

Requests that are not finished within the grace are cancelled: what they have read and written is
saved, and their clients get an error that says so. A second signal cuts the grace short.
"""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn
from anyio import to_thread
from starlette.applications import Starlette

from apps.server.logs import log
from apps.server.service import Service

ANSWERING = 5.0  # seconds for the last answers, and for saving, after the grace
STUCK = 30.0  # seconds after which the process ends even if a disk does not answer


class Server(uvicorn.Server):
    """A server that ends with status 0 when it is told to end."""

    def __init__(self, app: Starlette, service: Service) -> None:
        self._service = service
        grace = service.settings.grace
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=int(grace + ANSWERING) + 1,
            )
        )
        self._hurry = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which sends itself the signal again in the end, and so dies of it."""
        if threading.current_thread() is not threading.main_thread():
            yield  # whoever started the thread ends it
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; at the second signal, hurry."""
        if self.should_exit:
            asyncio.get_running_loop().call_soon_threadsafe(self._hurry.set)
        self.should_exit = True
        self._service.stopping = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what runs, save and close everything."""
        self._service.stopping = True
        running, waiting = self._service.engine.load
        log("stopping", running=running, waiting=waiting, grace=self._service.settings.grace)
        timer = threading.Timer(self._service.settings.grace + STUCK, _give_up)
        timer.daemon = True
        timer.start()
        cancelling = asyncio.create_task(self._cancel_late())
        await super().shutdown(sockets)
        cancelling.cancel()
        with suppress(asyncio.CancelledError):
            await cancelling
        timer.cancel()
        log("stopped")

    async def _cancel_late(self) -> None:
        """Cancel whatever is running when the grace is over."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), self._service.settings.grace)
        await to_thread.run_sync(self._service.engine.close, ANSWERING)


def _give_up() -> None:
    log("a commit does not end; what was acknowledged is saved")
    os._exit(1)
